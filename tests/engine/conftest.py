"""What the engine tests share: model families, and plain vLLM as the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fixtures.model_loading import Load, model_loader
from fixtures.plain_vllm import Answers, Batch, references
from fixtures.tiny_models import TinyFamily, make_family


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyFamily]:
    """Makes the family of a model type, once."""
    root = tmp_path_factory.mktemp("families")
    return lambda kind, adapters=4: make_family(kind, root, adapters)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[Any, Answers]]:
    """Runs plain vLLM; see `fixtures.plain_vllm.references`."""

    def run(models: Mapping[Any, Path], batches: Mapping[str, Batch], **engine: Any) -> dict[Any, Answers]:
        return references(models, batches, tmp_path_factory.mktemp("plain"), **engine)

    return run


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Loads a model as a worker of one rank does; see `fixtures.model_loading`."""
    with model_loader(tmp_path_factory.mktemp("rendezvous")) as loader:
        yield loader
