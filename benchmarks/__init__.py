"""Benchmarks: each a script of its own that can be imported by a test."""
