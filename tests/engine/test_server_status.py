"""Every documented code has one HTTP status: the client's own mistakes, and only those, are 4xx."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

import pytest

from npu_weave.engine.vllm.server import status_of

DOCS = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
CLASSES = {
    "AdapterError": HTTPStatus.BAD_REQUEST,
    "AdapterNotFoundError": HTTPStatus.NOT_FOUND,
    "AdapterPathError": HTTPStatus.BAD_REQUEST,
    "AdapterFileError": HTTPStatus.BAD_REQUEST,
    "CapacityError": HTTPStatus.CONFLICT,
    "DriverError": HTTPStatus.INTERNAL_SERVER_ERROR,
    "IntegrityError": HTTPStatus.INTERNAL_SERVER_ERROR,
    "WeaveError": HTTPStatus.INTERNAL_SERVER_ERROR,
}


OTHERS = {
    "ADAPTER_PATH_OUTSIDE": HTTPStatus.FORBIDDEN,
    "CATALOG_BUSY": HTTPStatus.SERVICE_UNAVAILABLE,
    "CATALOG_DOWNLOAD_FAILED": HTTPStatus.SERVICE_UNAVAILABLE,
    "CATALOG_UNREACHABLE": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""A place of the operator's that does not answer is nobody's mistake who asks."""


def documented() -> list[tuple[str, HTTPStatus]]:
    """Each code of the classes that a load can raise, with the status it should have."""
    found = []
    for section in re.split(r"^## ", DOCS.read_text(), flags=re.MULTILINE):
        status = CLASSES.get(section.split()[0])
        if status is not None:
            found += [(code, status) for code in re.findall(r"^\| `([A-Z0-9_]+)` \|", section, flags=re.MULTILINE)]
    return [(code, OTHERS.get(code, status)) for code, status in found]


def test_the_table_is_found() -> None:
    assert len(documented()) > 50


@pytest.mark.parametrize(("code", "status"), documented())
def test_status_of_a_code(code: str, status: HTTPStatus) -> None:
    assert status_of(f"Call to add_lora method failed: [{code}] thing; expected [1, 2]; got [3]") == status


@pytest.mark.parametrize("message", ["", "no code", "[lower] x", "x[NOT_ONE]y", "shape [1, 2]"])
def test_other_messages_keep_their_status(message: str) -> None:
    assert status_of(message) is None
