"""Profiling, of which there is none."""
