"""The edge: authorise, translate, call one thing, serialise."""
