"""Entry point of the plugin (group ``vllm.general_plugins``): vLLM calls `register` in every process."""

from __future__ import annotations

import os


def register() -> None:
    """Install the patches; they take effect only where the configuration has the key ``npu_weave``.

    Raises:
        ConfigError: LOG_FORMAT_INVALID.
    """
    from npu_weave.engine.ascend.patches import on_npu
    from npu_weave.engine.vllm import patches

    if "NPU_WEAVE_LOG" in os.environ:  # an engine without it imports nothing more
        from npu_weave.observability.json_logs import configure_logs

        configure_logs()
    patches.install()
    patches.install(on_npu())
