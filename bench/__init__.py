"""Benchmarks: tunable against plain convolutions (`python -m bench`, `tunable-ops bench`)."""
