"""Benchmarks: time and memory of what xbarc does."""
