"""A process of a server is killed while it loads adapters: nothing is left behind, and the next start serves again."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.plain_vllm import PROMPTS, Answer
from fixtures.served_family import family
from fixtures.server import (
    BASE,
    Server,
    completion,
    eventually,
    launched_server,
    running_server,
    server_processes,
)
from fixtures.tiny_models import TinyFamily

pytestmark = pytest.mark.engine
__all__ = ["family"]

NAMES = 40
"""Adapters of the catalogue; each is fetched and loaded when it is first asked for."""


READER = "npu_weave.residency.background_process"


class Place:
    """What a server is started with: directories, and its command line.

    Attributes:
        catalogue: adapters that are fetched into `cache`.
        declared: an adapter that is there from the start.
    """

    def __init__(self, root: Path, family: TinyFamily, *options: str) -> None:
        self.catalogue, self.cache = root / "catalogue", root / "cache"
        for number in range(NAMES):
            shutil.copytree(family.adapters[number % 2], self.catalogue / f"c{number}")
        self.declared, self.late = family.adapters[2], family.adapters[1]
        place = ["--catalog", f"file://{self.catalogue}", "--catalog-cache", str(self.cache)]
        self.arguments: dict[str, Any] = {
            "base": family.base,
            "log": root / "log.txt",
            "adapters": {"declared": self.declared},
            "roots": [family.base.parent],
            "options": [*place, "--max-loras", "3", "--max-cpu-loras", "3", *options],
        }

    def half_written(self) -> list[Path]:
        """Files of complete adapters in the cache that are not as they are in the catalogue."""
        kept = [path for path in (self.cache / "adapters").glob("*/*/*") if path.is_file()]
        origin = {path: self.catalogue / path.parts[-3] / path.name for path in kept}
        return [path for path, source in origin.items() if path.read_bytes() != source.read_bytes()]


def processes(server: Server, title: str) -> list[int]:
    """Processes of a server whose command line holds `title`."""
    found = []
    for pid in server_processes(server.process.pid):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except FileNotFoundError:
            continue
        if title.encode() in line:
            found.append(pid)
    return found


class Busy:
    """Loads without end, of two clients: over the catalogue, and over the admin routes.

    Attributes:
        done: loads that ended well.
        waiting: clients that wait for one.
    """

    def __init__(self, server: Server, late: Path) -> None:
        self._server, self._late = server, late
        self.done, self.waiting = 0, 0
        self._lock = threading.Lock()

    def from_catalogue(self) -> None:
        for number in range(10 * NAMES):
            self._call("/v1/completions", completion(f"c{number % NAMES}", PROMPTS[0], max_tokens=1))

    def by_routes(self) -> None:
        body = {"lora_name": "late", "lora_path": str(self._late)}
        for _ in range(10 * NAMES):
            self._call("/v1/load_lora_adapter", body)
            self._call("/v1/unload_lora_adapter", body)

    def _call(self, path: str, body: dict[str, Any]) -> None:
        with self._lock:
            self.waiting += 1
        response = self._server.client.post(path, json=body)
        response.raise_for_status()
        with self._lock:
            self.waiting -= 1
            self.done += 1


@pytest.fixture
def place(family: TinyFamily, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    yield Place(tmp_path, family, *request.param)


def kill(server: Server, place: Place, victim: str) -> None:
    """Kill the last process of this title while adapters are loaded; all others end, and nobody waits any more."""
    busy = Busy(server, place.late)
    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(busy.from_catalogue), pool.submit(busy.by_routes)]
        eventually(lambda: busy.done >= 10 and busy.waiting == 2, "loads are under way")
        os.kill(processes(server, victim)[-1], signal.SIGKILL)
        for client in clients:
            assert isinstance(client.exception(60), httpx.HTTPError), "nobody is left waiting"
    eventually(lambda: not server_processes(server.process.pid), "all processes have ended")
    assert list((place.cache / "adapters").iterdir()) and not place.half_written()


def serve(server: Server, place: Place) -> Answer:
    """What the declared adapter answers, where it alone is there and others can be had."""
    assert set(server.models()) == {BASE, "declared"}
    (answer,) = server.complete("declared", PROMPTS[0])
    assert server.load("late", place.late).status_code == 200
    for name in ("c0", f"c{NAMES - 1}"):
        server.complete(name, PROMPTS[0])
    assert server.unload("late").status_code == 200
    return answer


@pytest.mark.parametrize(
    ("place", "victims"),
    [((), ("npu_weave serve", "EngineCore")), (("--tensor-parallel-size", "2"), ("Worker",))],
    indirect=["place"],
    ids=["server and engine", "worker"],
)
def test_killed_while_it_loads_it_comes_back(place: Place, victims: Sequence[str]) -> None:
    """Each victim in a server of its own, over what the one before has left."""
    answers = []
    for victim in victims:
        with launched_server(**place.arguments) as server:
            answers.append(serve(server, place))
            kill(server, place, victim)
    with running_server(**place.arguments) as again:
        answers.append(serve(again, place))
    assert len(set(answers)) == 1
    assert not place.half_written()


@pytest.mark.parametrize("place", [("--host-cache", "0")], indirect=True, ids=["reader"])
def test_readers_killed_while_adapters_are_loaded_cost_nobody_anything(place: Place) -> None:
    body = {"lora_name": "late", "lora_path": str(place.late)}
    with launched_server(**place.arguments) as server:
        (before,) = server.complete("declared", PROMPTS[0])
        stop, loaded, refused = threading.Event(), [], []

        def load_and_unload() -> None:
            while not stop.is_set():
                response = server.client.post("/v1/load_lora_adapter", json=body)
                (loaded if response.status_code == 200 else refused).append(response.text)
                if response.status_code == 200:
                    server.client.post("/v1/unload_lora_adapter", json=body).raise_for_status()

        with ThreadPoolExecutor(1) as pool:
            client = pool.submit(load_and_unload)
            for _ in range(2):
                eventually(lambda: len(processes(server, READER)) == 2, "the engine core's and the worker's")
                for pid in processes(server, READER):
                    os.kill(pid, signal.SIGKILL)
                assert server.complete("declared", PROMPTS[0]) == [before]
                enough = len(loaded) + len(refused) + 3
                eventually(lambda enough=enough: len(loaded) + len(refused) >= enough, "loads that others read")
            stop.set()
            client.result(60)
        assert not refused, refused
        assert server.load("late", place.late).status_code == 200
        assert server.complete("declared", PROMPTS[0]) == [before]
