"""Server-sent events, cut out of a stream."""

from __future__ import annotations


class EventReader:
    """Cuts the JSON of one stream's events out of its bytes, by line feeds alone.

    What `httpx.Response.iter_lines` takes for ends of lines besides (U+0085, U+2028 ...) JSON leaves in strings as it
    is, and a model may say it.
    """

    def __init__(self) -> None:
        self._rest = b""

    def read(self, data: bytes) -> list[bytes]:
        """The events that `data`, the next bytes of the stream, completes; the last one, ``[DONE]``, is not JSON."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: {")]
