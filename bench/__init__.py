"""Benchmarks: the bridge compared with what a user could run instead. `python -m bench --help`."""
