"""Requests that arrive on their own, some of which hang up."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from weave_bench.serve_soak.history import GONE, History
from weave_bench.serve_soak.truth import Name, Truth
from weave_bench.serve_soak.verdict import judge
from weave_bench.serving.events import EventReader
from weave_bench.serving.workload import adapter_at
from weave_lab.demo.servers import BASE
from weave_lab.demo.traffic import SAMPLING, Reply

ALPHA = 0.5
BASE_SHARE = 0.1
ABORTED = 0.01


@dataclass
class Found:
    """What came of the requests.

    Attributes:
        outcomes: how often what happened.
        failures: what should not have happened, the first of each kind in words.
        gaps: seconds between two tokens' arrival, of all requests.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)

    def note(self, outcome: str, *, failure: str = "") -> None:
        """Count an outcome; `failure` says in words why it is one."""
        self.outcomes[outcome] += 1
        if failure:
            self.failures.setdefault(outcome, failure)


async def send_requests(
    client: httpx.AsyncClient, names: Sequence[Name], histories: Mapping[str, History], truth: Truth, found: Found,
    *, rate: float, until: float, seed: int,
) -> None:  # fmt: skip
    """Poisson arrivals of `rate` requests a second until the monotonic instant `until`; ends with the last answer."""
    draw = random.Random(seed)
    under_way: set[asyncio.Task[None]] = set()
    while time.monotonic() < until:
        await asyncio.sleep(draw.expovariate(rate))
        name = names[adapter_at(1 - draw.random(), len(names), ALPHA)]
        model = BASE if draw.random() < BASE_SHARE else name.name
        hangs_up = draw.random() < ABORTED
        request = _request(client, model, draw.choice(name.prompts), name, histories, truth, found, hangs_up)
        task = asyncio.create_task(request)
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)


async def _request(
    client: httpx.AsyncClient, model: str, prompt: str, name: Name, histories: Mapping[str, History], truth: Truth,
    found: Found, hangs_up: bool,
) -> None:  # fmt: skip
    body = {**SAMPLING, "model": model, "prompt": prompt, "return_token_ids": True, "stream": True}
    sent = first = time.monotonic()
    text, tokens, logprobs = "", list[int](), list[float]()
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                reason = (await response.aread()).decode(errors="replace")[:500]
                _note_refusal(response.status_code, reason, model, histories, sent, found)
                return
            last, reader = 0.0, EventReader()
            async for data in response.aiter_bytes():
                for chunk in map(json.loads, reader.read(data)):
                    now = time.monotonic()
                    first, last = (first, last) if tokens else (now, 0.0)
                    if last:
                        found.gaps.append(now - last)
                    last = now
                    if "error" in chunk:
                        found.note("error in an answer", failure=json.dumps(chunk))
                        return
                    for choice in chunk["choices"]:
                        text += choice["text"]
                        tokens += choice["token_ids"]
                        logprobs += (choice["logprobs"] or {}).get("token_logprobs", [])
                    if hangs_up and tokens:
                        found.note("hung up")
                        return
    except httpx.HTTPError as error:
        found.note("connection failed", failure=repr(error))
        return
    reply = Reply(text, tuple(tokens), tuple(logprobs))
    met = {BASE} if model == BASE else {each for each in histories[model].between(sent, first) if each is not GONE}
    others = {BASE, *(content.name for content in name.contents)} - met
    outcome = judge(reply, prompt, met, others, truth)
    wrong = outcome not in ("exact", "near tie")
    found.note(outcome, failure=f"{model}, {prompt!r}: {text!r}, may have met {sorted(met)}" if wrong else "")


def _note_refusal(
    status: int, reason: str, model: str, histories: Mapping[str, History], sent: float, found: Found
) -> None:
    gone = model != BASE and GONE in histories[model].between(sent, time.monotonic())
    if gone and status in (400, 404):
        found.note("not in service, said so")
    else:
        found.note(f"refused with {status}", failure=f"{model}: {reason}")
