"""The engine's MoE layers, step by step: what a decode or prefill step costs with adapters, and what it should."""
