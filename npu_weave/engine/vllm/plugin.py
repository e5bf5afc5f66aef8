"""Entry point of the plugin (group ``vllm.general_plugins``): vLLM calls `register` in every process."""

from __future__ import annotations


def register() -> None:
    """Install the patches; they take effect only where the configuration has the key ``npu_weave``."""
    from npu_weave.engine.ascend.patches import on_npu
    from npu_weave.engine.vllm import patches

    patches.install()
    patches.install(on_npu())
