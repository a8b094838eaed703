"""Suites of runs: planned, made, recorded, measured."""
