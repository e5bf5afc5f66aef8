"""The client's process, against a server of a few lines that answers as an OpenAI-compatible one does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from weave_bench.serving.client import read_pieces
from weave_bench.serving.events import EventReader
from weave_bench.serving.records import Call, Wave
from weave_bench.serving.traffic import send

PAUSE = 0.05


def event(completion: int | None = None, *, choices: bool = True) -> bytes:
    body: dict[str, object] = {"choices": [{"index": 0, "text": "x"}] if choices else []}
    if completion is not None:
        body["usage"] = {"prompt_tokens": 7, "completion_tokens": completion, "total_tokens": 7 + completion}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def test_tokens_come_from_the_running_usage() -> None:
    pieces = [(1.0, event(1)), (2.0, event(4)), (2.5, event(4, choices=False)), (2.5, b"data: [DONE]\n\n")]
    assert read_pieces(pieces) == ([1.0, 2.0], [1, 3], 7)


def test_an_event_counts_from_its_last_byte() -> None:
    whole = event(1)
    assert read_pieces([(1.0, whole[:20]), (2.0, whole[20:])]) == ([2.0], [1], 7)


def test_several_events_may_come_at_once() -> None:
    assert read_pieces([(1.0, event(1) + event(2) + event(3)[:9]), (3.0, event(3)[9:])]) == (
        [1.0, 1.0, 3.0],
        [1, 1, 1],
        7,
    )


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029", "\x0c", "\x1c", "\r", "\n"])
def test_what_a_model_says_ends_no_event(character: str) -> None:
    text = f"one{character}two"
    stream = b"data: " + json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n\ndata: [DONE]\n\n"
    for cut in range(len(stream)):
        reader = EventReader()
        found = [*reader.read(stream[:cut]), *reader.read(stream[cut:])]
        assert [json.loads(each) for each in found] == [{"text": text}]


def test_without_usage_an_event_is_a_token() -> None:
    assert read_pieces([(1.0, event()), (2.0, event())]) == ([1.0, 2.0], [1, 1], 0)


def test_an_event_without_new_tokens_is_no_piece() -> None:
    assert read_pieces([(1.0, event(1)), (2.0, event(1)), (3.0, event(2))]) == ([1.0, 3.0], [1, 1], 7)


class Handler(BaseHTTPRequestHandler):
    """Sends the tokens asked for, one in `PAUSE` seconds; the model's name says how to misbehave."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if body["model"] == "unknown":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for token in range(body["max_tokens"] - (body["model"] == "short")):
            time.sleep(PAUSE)
            self.wfile.write(event(token + 1))
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.bodies = []
    server.handle_error = lambda *args: None  # clients hang up on purpose
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def call(server: ThreadingHTTPServer, at: float = 0.0, model: str = "base", tokens: int = 3) -> Call:
    return Call(at, f"http://127.0.0.1:{server.server_address[1]}", model, "hello", tokens)


def test_requests_leave_at_their_time_and_pieces_are_timed(server: ThreadingHTTPServer) -> None:
    first, second = send([Wave([call(server), call(server, at=0.3)]), Wave([call(server, tokens=1)])], "test")
    early, late = first.replies
    assert (early.due, late.due) == (0.0, 0.3) and late.sent >= 0.3
    for reply in first.replies:
        assert reply.finished and not reply.error
        assert reply.tokens == [1, 1, 1] and reply.prompt_tokens == 7
        assert reply.sent + PAUSE <= reply.times[0] <= reply.times[1] <= reply.times[2] <= first.seconds
    assert [reply.tokens for reply in second.replies] == [[1]]
    assert first.client_cpu > 0
    assert 0 <= first.stolen < 1


def test_every_answer_is_as_long_as_asked_for(server: ThreadingHTTPServer) -> None:
    send([Wave([call(server)])], "test")
    (body,) = server.bodies
    assert body["ignore_eos"] is True and body["max_tokens"] == 3 and body["temperature"] == 0.0


def test_what_takes_too_long_is_given_up(server: ThreadingHTTPServer) -> None:
    (outcome,) = send([Wave([call(server), call(server, tokens=1000)], limit=5.0)], "test")
    whole, cut = outcome.replies
    assert whole.finished
    assert not cut.finished and not cut.error and 0 < sum(cut.tokens) < 1000
    assert max(cut.times) <= outcome.seconds


def test_single_failures_are_told(server: ThreadingHTTPServer) -> None:
    (outcome,) = send([Wave([call(server), call(server, model="unknown"), call(server, model="short")])], "test")
    assert [reply.finished for reply in outcome.replies] == [True, False, False]
    assert "404" in outcome.replies[1].error
    assert outcome.replies[2].error == "2 tokens where 3 were asked for"


def test_a_wave_of_failures_is_an_error(server: ThreadingHTTPServer) -> None:
    with pytest.raises(RuntimeError, match="every request of a wave failed; the first: status 404"):
        send([Wave([call(server)]), Wave([call(server, model="unknown")])], "test")


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ConnectError"):
        send([Wave([Call(0.0, "http://127.0.0.1:9", "base", "hello", 1)])], "test")


def test_any_server_can_be_measured(server: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    command = [sys.executable, "-m", "weave_bench.serving", url, "one=cipher", "two=intent"]
    options = ["--rate", "8", "--horizon", "2", "--repeats", "2", "--alpha", "0.5"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "one 71%, two 29%" in " ".join(done.stdout.split()) and "TTFT p50" in done.stdout
    assert {body["model"] for body in server.bodies} == {"one", "two"}
    assert all(body["prompt"].startswith({"one": "cipher", "two": "intent"}[body["model"]]) for body in server.bodies)


def test_a_task_that_is_not_there_is_named() -> None:
    command = [sys.executable, "-m", "weave_bench.serving", "http://127.0.0.1:9", "one=nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "nothing" in done.stderr
