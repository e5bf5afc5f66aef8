"""What the client is told to send, and what it tells of the answers."""

from __future__ import annotations

import msgspec


class Call(msgspec.Struct, frozen=True):
    """One request to come.

    Attributes:
        at: seconds after its wave begins.
        url: the server's root, e.g. ``http://127.0.0.1:8000``.
        model: name under which that server knows what is asked.
        prompt: text.
        tokens: exactly so many are asked for, whatever the model would say.
    """

    at: float
    url: str
    model: str
    prompt: str
    tokens: int


class Wave(msgspec.Struct, frozen=True):
    """Requests that belong together. A client sends one wave after the other.

    Attributes:
        calls: in order of time.
        limit: seconds after its begin at which what has not been answered is given up.
    """

    calls: list[Call]
    limit: float = 300.0


class Reply(msgspec.Struct, frozen=True):
    """What came back on one request; times in seconds since its wave began.

    Attributes:
        due: when it should have been sent, and what latencies count from.
        sent: when it was sent.
        times: when each piece of the answer came.
        tokens: how many tokens each piece held.
        prompt_tokens: as the server counted them.
        finished: whether all tokens came.
        error: why it failed; empty where it did not, also when it was given up at its wave's limit.
    """

    due: float
    sent: float
    times: list[float]
    tokens: list[int]
    prompt_tokens: int
    finished: bool
    error: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """One wave.

    Attributes:
        replies: one a call, in order.
        seconds: from its begin to its last reply.
        client_cpu: processor seconds the client used over wall seconds: near 1 means the client held it up.
        stolen: share of the cores' time that the machine's host gave to others meanwhile (`Host`).
    """

    replies: list[Reply]
    seconds: float
    client_cpu: float
    stolen: float
