"""Two replicas behind vLLM's router: requests of an adapter meet on one of them, and move when that one dies.

The recipe of docs/scaling.md with real processes: two servers over one catalogue, `vllm-router` before them. Nothing of
the router is ours, so what is tested is that the parts fit.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from fixtures.plain_vllm import PROMPTS, Answer
from fixtures.served_family import family, truth
from fixtures.server import (
    BASE,
    NO_REUSE,
    Server,
    Truth,
    completion,
    eventually,
    free_port,
    launched_server,
    server_processes,
)
from fixtures.tiny_models import TinyFamily

from npu_weave.cli.status import read_status

pytestmark = pytest.mark.engine
__all__ = ["family", "truth"]

NAMES = [f"n{number}" for number in range(8)]
AFFINITY = "X-Tenant-ID"
"""The header by whose value the router chooses a replica."""


class Fleet:
    """Replicas, and a client of the router before them."""

    def __init__(self, replicas: list[Server], client: httpx.Client) -> None:
        self.replicas, self.client = replicas, client

    def ask(self, name: str) -> Answer:
        """The answer to a request that carries its adapter's name in the header too."""
        response = self.client.post("/v1/completions", json=completion(name, PROMPTS[0]), headers={AFFINITY: name})
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        return Answer(tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))

    def served(self) -> list[dict[str, int]]:
        """For each replica that is up, requests by adapter, as routers and people read it off its metrics."""
        found = []
        for replica in self.replicas:
            adapters = read_status(str(replica.client.base_url)).adapters
            found.append({name: int(each["requests"]) for name, each in adapters.items() if "requests" in each})
        return found


@contextmanager
def router(replicas: list[Server], log: Path) -> Iterator[str]:
    """`vllm-router` before the replicas, as docs/scaling.md starts it; its URL."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("vllm-router")), "--policy", "consistent_hash",
        "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()),
        "--health-check-interval-secs", "1", "--health-failure-threshold", "2",
        "--worker-urls", *(str(replica.client.base_url).rstrip("/") for replica in replicas),
    ]  # fmt: skip
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def fleet(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("fleet")
    for number, name in enumerate(NAMES):
        shutil.copytree(family.adapters[number % 3], root / "catalogue" / name)
    options = ["--catalog", str(root / "catalogue"), "--max-loras", "4", "--max-cpu-loras", "8"]
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(launched_server(family.base, root / f"{number}.txt", {}, options=options))
            for number in range(2)
        ]
        url = stack.enter_context(router(replicas, root / "router.txt"))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=120, limits=NO_REUSE))
        eventually(lambda: _is_up(client), f"the router is up; see {root / 'router.txt'}")
        yield Fleet(replicas, client)


def right(truth: Truth, name: str) -> Answer:
    return truth[f"a{int(name[1:]) % 3}"].alone


def test_requests_follow_residency(fleet: Fleet, truth: Truth) -> None:
    for _ in range(3):
        for name in NAMES:
            assert fleet.ask(name) == right(truth, name), name
    eventually(lambda: sum(sum(each.values()) for each in fleet.served()) == 3 * len(NAMES), "all are counted")
    one, other = fleet.served()
    assert one and other, "both replicas have adapters"
    assert not one.keys() & other.keys(), "no adapter is on both"
    assert one | other == dict.fromkeys(NAMES, 3)


def test_a_crowd_is_answered_by_both_at_once(fleet: Fleet) -> None:
    jobs = NAMES * 4
    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(fleet.ask, jobs))
    assert all(answer.tokens for answer in found)
    one, other = fleet.served()
    assert not one.keys() & other.keys()


def test_adapters_of_a_dead_replica_are_served_by_the_other(fleet: Fleet, truth: Truth) -> None:
    """The last test: a replica is gone then."""
    dead, alive = fleet.replicas
    for pid in server_processes(dead.process.pid):
        os.kill(pid, signal.SIGKILL)
    fleet.replicas = [alive]

    def all_are_answered() -> bool:
        try:
            return [fleet.ask(name) for name in NAMES] == [right(truth, name) for name in NAMES]
        except (httpx.HTTPError, AssertionError):
            return False

    eventually(all_are_answered, "the router has noticed")
    assert set(alive.models()) == {BASE, *NAMES}
