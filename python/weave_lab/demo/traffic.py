"""Requests over HTTP, many at a time, and what came back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from tqdm import tqdm

SAMPLING = {
    "max_tokens": 96,
    "temperature": 0.0,
    "stop": ["\n"],
    "include_stop_str_in_output": True,
    "logprobs": 0,
}
"""Greedy, up to the newline that ends an answer; as the HTTP API and vLLM's SamplingParams both take it."""


@dataclass(frozen=True)
class Request:
    """One completion asked of `model`, with `SAMPLING`."""

    model: str
    prompt: str


@dataclass(frozen=True)
class Reply:
    """What a server answered: text, token ids and the log-probability of each token."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def send(url: str, requests: Sequence[Request], title: str, at_once: int) -> list[Reply]:
    """Send all `requests` to one server, `at_once` at a time, and collect the replies in order.

    Raises:
        httpx.HTTPStatusError: the server refused one.
    """
    return asyncio.run(_send(url, requests, title, at_once))


async def _send(url: str, requests: Sequence[Request], title: str, at_once: int) -> list[Reply]:
    gate = asyncio.Semaphore(at_once)
    with tqdm(total=len(requests), desc=title, unit="req", disable=None) as bar:
        # the server closes idle connections on its own; a fresh one for each request cannot meet that
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

            async def one(request: Request) -> Reply:
                async with gate:
                    reply = await _complete(client, request)
                bar.update()
                return reply

            return list(await asyncio.gather(*(one(request) for request in requests)))


async def _complete(client: httpx.AsyncClient, request: Request) -> Reply:
    body = {**SAMPLING, "model": request.model, "prompt": request.prompt, "return_token_ids": True}
    response = await client.post("/v1/completions", json=body)
    response.raise_for_status()
    choice = response.json()["choices"][0]
    return Reply(choice["text"], tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))
