"""The vLLM hook: ESFT adapters through vLLM's own LoRA control plane.

`plugin` is the entry point; `patches` lists every touch of vLLM's code with target, reason, versions and removal
condition. `settings` says what is refused at start-up. `moe_layer` is the port to one MoE layer, `manager` stands
in for vLLM's LoRA manager in the worker, `control` keeps revisions in the engine core, `server` serves the HTTP
side.
"""
