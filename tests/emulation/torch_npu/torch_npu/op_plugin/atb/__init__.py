"""Operators of ATB."""
