"""A whole engine of DeepSeek-V2-Lite's geometry with dummy weights, base model alone beside npu-weave: of part ``gpu``.

``plan``        what is served, and how much is measured
``models``      a base model's config, and adapters that take no disk
``process``     one engine in a process of its own, which imports vLLM
``comparison``  engines in turn, and the tables
"""
