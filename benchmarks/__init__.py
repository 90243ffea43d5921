"""Benchmarks: `pytest benchmarks`, and scripts to run by hand."""
