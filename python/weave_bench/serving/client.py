"""The client, a process of its own: sends waves of completions to OpenAI-compatible servers and times every piece.

``python -m weave_bench.serving.client`` reads a list of `Wave` as JSON from its standard input and writes one `Outcome`
a line to its standard output. While a wave is on its way only instants and raw bytes are noted; they are read
afterwards, so that the client takes little from servers on the same machine.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import Any

import httpx
import msgspec

from weave_bench.host import Host
from weave_bench.serving.events import EventReader
from weave_bench.serving.records import Call, Outcome, Reply, Wave

_PAUSE = 0.2
"""Seconds between waves: what was given up is cleared away by the server, and nothing of it reaches the next wave."""
_LEAD = 0.05
"""Seconds in which all requests of a wave are prepared before its time begins."""

Pieces = list[tuple[float, bytes]]


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[dict[str, Any]] = []
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Event).decode


def read_pieces(pieces: Pieces) -> tuple[list[float], list[int], int]:
    """What a streamed answer was: instants, tokens and prompt tokens, from raw bytes and when they came.

    An event counts from when its last byte was there. Tokens come from the usage that vLLM adds to every event when
    asked (`continuous_usage_stats`); a server that does not is taken to send one token an event.
    """
    times: list[float] = []
    tokens: list[int] = []
    prompt, seen, reader = 0, 0, EventReader()
    for instant, data in pieces:
        for event in map(_decode, reader.read(data)):
            prompt = event.usage.prompt_tokens if event.usage else prompt
            if not event.choices:  # the total at the end
                continue
            total = event.usage.completion_tokens if event.usage else seen + 1
            if total > seen:
                times.append(instant)
                tokens.append(total - seen)
                seen = total
    return times, tokens, prompt


async def _ask(client: httpx.AsyncClient, call: Call, begin: float, pieces: Pieces) -> tuple[float, str]:
    """Send one call at its time and note the pieces of the answer; returns when it was sent, and an error."""
    body = {
        "model": call.model, "prompt": call.prompt, "max_tokens": call.tokens, "temperature": 0.0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip
    request = client.build_request("POST", f"{call.url}/v1/completions", json=body)
    await asyncio.sleep(begin + call.at - time.perf_counter())
    sent = time.perf_counter() - begin
    try:
        response = await client.send(request, stream=True)
        try:
            if response.status_code != 200:
                return sent, f"status {response.status_code}: {(await response.aread()).decode(errors='replace')[:200]}"
            async for data in response.aiter_raw():
                pieces.append((time.perf_counter() - begin, data))
        finally:
            await response.aclose()
    except httpx.HTTPError as error:
        return sent, f"{type(error).__name__}: {error}"
    return sent, ""


async def _send(client: httpx.AsyncClient, wave: Wave) -> Outcome:
    noted: list[Pieces] = [[] for _ in wave.calls]
    begin, before, host = time.perf_counter() + _LEAD, time.process_time(), Host()
    tasks = [
        asyncio.create_task(_ask(client, call, begin, pieces)) for call, pieces in zip(wave.calls, noted, strict=True)
    ]
    if tasks:
        await asyncio.wait(tasks, timeout=wave.limit + _LEAD)
    seconds, used = time.perf_counter() - begin, time.process_time() - before
    stolen = host.stolen()
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    replies = [_reply(*ended) for ended in zip(wave.calls, noted, ends, strict=True)]
    return Outcome(replies, seconds, used / seconds, stolen)


def _reply(call: Call, pieces: Pieces, end: tuple[float, str] | BaseException) -> Reply:
    times, tokens, prompt = read_pieces(pieces)
    if isinstance(end, BaseException):
        if not isinstance(end, asyncio.CancelledError):
            raise end
        return Reply(call.at, call.at, times, tokens, prompt, False)
    sent, error = end
    complete = sum(tokens) == call.tokens
    error = error or ("" if complete else f"{sum(tokens)} tokens where {call.tokens} were asked for")
    return Reply(call.at, sent, times, tokens, prompt, complete, error)


async def _run(waves: list[Wave]) -> None:
    # a server closes idle connections on its own; a fresh one a request cannot meet that
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:
        for wave in waves:
            gc.collect()
            gc.disable()
            outcome = await _send(client, wave)
            gc.enable()
            sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
            sys.stdout.buffer.flush()
            await asyncio.sleep(_PAUSE)


def main() -> None:
    """Run the waves on standard input."""
    asyncio.run(_run(msgspec.json.decode(sys.stdin.buffer.read(), type=list[Wave])))


if __name__ == "__main__":
    main()
