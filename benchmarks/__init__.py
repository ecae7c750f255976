"""Benchmarks: one file for each question, answered with medians of repeated runs. See README.md."""
