"""Random fields in requests to a running server: a refusal or an answer, never a failure, and others are served on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fixtures.examples import examples
from fixtures.plain_vllm import PROMPTS
from fixtures.served_family import family, truth
from fixtures.server import BASE, Server, Truth, completion, running_server
from fixtures.tiny_models import TinyFamily
from hypothesis import event, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.engine
__all__ = ["family", "truth"]

PLACES = [
    "../a0", "..", "/", "/etc/passwd", "~root", "~/x", "./a0", "a0/../a0", "a0/", "//a0", "a0\0", "C:\\a0", "%2e%2e/a0",
    "file:///etc", "http://127.0.0.1:1/a0", "s3://bucket/a0", "hf://x/y", "memory://x", "\\\\host\\share",
    "/proc/self/root", "/dev/zero", "/dev/stdin", "", " ", ".", ".a0", "-a0", "a0 ", "A0", "x" * 300, "ä", "a0\n",
    "\u202e0a", "{}", "${HOME}",
]  # fmt: skip
texts = st.one_of(st.sampled_from(PLACES), st.text(max_size=24), st.sampled_from(["a0", BASE, "broken"]))
values = st.one_of(
    texts, st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.lists(texts, max_size=3), st.dictionaries(st.text(max_size=8), texts, max_size=3),
)  # fmt: skip
"""Of a field that should be a text."""

extras = st.dictionaries(
    st.sampled_from(["lora_name", "lora_path", "lora_request", "lora_int_id", "adapter", "load_inplace", "cache_salt"]),
    values,
    max_size=3,
)


@pytest.fixture(scope="module")
def server(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A catalogue and the admin routes at once: everything that takes a name or a path from outside."""
    root = tmp_path_factory.mktemp("catalogue")
    shutil.copytree(family.adapters[0], root / "a0")
    shutil.copytree(family.adapters[0], root / "broken")
    next((root / "broken").glob("*.safetensors")).write_bytes(b"\x08" + bytes(7) + b"{}      ")
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with running_server(family.base, log, {}, [root], ["--catalog", str(root), "--max-loras", "2"]) as up:
        yield up


@pytest.fixture(autouse=True)
def others_are_served_on(server: Server, truth: Truth) -> Iterator[None]:
    """After each test the server answers as it did."""
    yield
    assert server.complete("a0", PROMPTS[0]) == [truth["a0"].alone]
    assert server.complete(BASE, PROMPTS[0]) == [truth[BASE].alone]


def send(server: Server, path: str, body: Any) -> httpx.Response:
    """Send `body`, and see that the answer is one, or a refusal of what was sent."""
    response = server.client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    event(f"{path} {response.status_code}")
    assert response.status_code < 500, (body, response.status_code, response.text[:500])
    return response


@settings(max_examples=examples(60))
@given(model=values, more=extras)
def test_completions(server: Server, model: Any, more: dict[str, Any]) -> None:
    body = {**completion(BASE, PROMPTS[0], max_tokens=2), **more, "model": model}
    response = send(server, "/v1/completions", body)
    if response.status_code == 200:
        assert model in ("a0", BASE, None, ""), "nobody else is there"


@settings(max_examples=examples(40))
@given(model=values, more=extras, path=st.sampled_from(["/v1/chat/completions", "/tokenize", "/v1/responses"]))
def test_other_routes(server: Server, model: Any, more: dict[str, Any], path: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "max_tokens": 1}
    send(server, path, {**body, **more, "model": model})


@settings(max_examples=examples(80))
@given(name=values, path=values, more=extras)
def test_loads(server: Server, name: Any, path: Any, more: dict[str, Any]) -> None:
    response = send(server, "/v1/load_lora_adapter", {**more, "lora_name": name, "lora_path": path})
    assert response.status_code >= 400, "no path but those below the catalogue is allowed, and none of these is one"


@settings(max_examples=examples(40))
@given(name=values, more=extras)
def test_unloads(server: Server, name: Any, more: dict[str, Any]) -> None:
    response = send(server, "/v1/unload_lora_adapter", {**more, "lora_name": name})
    assert response.status_code >= 400 or name == "a0"


@settings(max_examples=examples(40))
@given(body=st.one_of(values, st.binary(max_size=64)), path=st.sampled_from(["completions", "load_lora_adapter"]))
def test_bodies_that_are_no_object(server: Server, body: Any, path: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = server.client.post(f"/v1/{path}", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500
