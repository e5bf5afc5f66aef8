"""Transforms of images, second version."""
