"""A torchvision of names only, for imports that text models drag in: vllm-ascend patches vision models when it starts,
and transformers imports torchvision with their image processors. Its wheels on PyPI are made for the CUDA torch.

Whoever calls something here gets a RuntimeError, and whoever imports more than is named here, an ImportError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__version__ = "0.28.0"


def refusing(name: str) -> Callable[..., Any]:
    """A function that can be imported, and refuses to be called."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"torchvision.{name}: there is no torchvision here, only its names")

    return refuse
