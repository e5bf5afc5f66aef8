"""The `npu-weave` command: one file a command group."""
