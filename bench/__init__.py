"""Benchmarks: the bridge beside what a user would pick instead. `python -m bench --help`."""
