"""Measures npu-weave: what it costs, and that it does not leak. Every figure comes with what it is compared to.

Nothing in npu_weave imports this package; it knows everything but the engine.
"""
