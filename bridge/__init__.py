"""Braze to SessionM bridge."""

__version__ = "0.1.0"
