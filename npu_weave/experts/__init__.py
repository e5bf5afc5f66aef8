"""Rows of the weight tensors: which row holds which expert, and how adapters' experts come and go."""
