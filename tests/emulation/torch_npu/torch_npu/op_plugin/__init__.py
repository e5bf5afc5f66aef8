"""Operators of other libraries."""
