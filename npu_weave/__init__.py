"""npu-weave: many ESFT adapters over one shared MoE base model, in one vLLM engine."""

__version__ = "0.1.0"
