"""The vllm-ascend hook: the same adapters on Ascend NPUs, through the control plane of `engine.vllm`.

`patches` lists every touch of vllm-ascend's code. `settings` says what is refused at start-up. `moe_layer` is the port
to one MoE layer; `dispatch` gives the engine's dispatchers rows instead of experts; `npu` knows the device.
"""
