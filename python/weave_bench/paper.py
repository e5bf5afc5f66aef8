"""What the paper reports for what is measured here (arXiv 2508.17624, section 5), to stand beside it.

Measured there with vLLM and vllm-ascend 0.8.4 on NPUs of 64 GB with DeepSeek-V2-Lite's shape; here mostly on a CPU.
Ratios can be compared, times cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Finding(NamedTuple):
    """Where the paper shows it, and what."""

    where: str
    what: str


FINDINGS: Mapping[str, tuple[Finding, ...]] = {
    "arrivals": (
        Finding("TTFT over the base model alone", "+8 % with 5 adapters, +11 % with 20"),
        Finding("TPOT over the base model alone", "+4 % to +11 %"),
    ),
    "overhead": (
        Finding("TTFT over the base model alone", "+8 % with 5 adapters, +11 % with 20"),
        Finding("TPOT over the base model alone", "+4 % to +11 %; experts touched are not reported"),
    ),
    "prefill": (Finding("prefill throughput beside the base model", "within 2 %"),),
    "decode": (Finding("TPOT over the base model alone", "+4 % to +11 %"),),
    "merged": (
        Finding("prefill throughput over two merged instances, 10 requests/s, skewed", "+7 % to +14 %"),
        Finding("decode throughput over the same", "+14 % to +18 %"),
    ),
    "parity": (Finding("virtual beside padded weight tensors", "TTFT within 3 %, TPOT within 1 %"),),
    "separate": (
        Finding("rerouting in one kernel / in framework operators", "less than 1 % / +29 % of TTFT and TPOT"),
    ),
    "memory": (
        Finding(
            "weights for 1 / 2 / 3 adapters, GiB",
            "merged 29.3 / 58.6 / none; padded 34 / 39 / 44.3; theirs 32.1 / 36.2 / 38.7",
        ),
        Finding("KV cache, tokens", "merged 810 K / 6 K; theirs 572 K with two adapters, 477 K with three"),
        Finding("padded over exact memory (F_mem), ten adapters", "1.51"),
    ),
    "accuracy": (
        Finding("GSM8K: base / merged / served", "56.5 / 62.3 / 62.3"),
        Finding("intent: base / merged / served", "18.6 / 78.8 / 78.8"),
    ),
}
"""By the name of a table here; a GPU's tables go by the same names."""
