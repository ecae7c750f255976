"""A small answer as one write. ASGI says it in two messages, and uvicorn makes two writes of them: each costs the
gateway a call of the kernel, and the client a read.

Owns what uvicorn does for the two messages, for one known kind of answer. Does not own what is answered.
"""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

WHOLE: Final = "imray.whole"
"""In the scope of a request that came over a connection of `api.connections`: `answer_whole` for this request."""


def answer_whole(cycle: RequestResponseCycle, status: int, content: bytes) -> bool:
    """Answer with JSON, and end the request. False: nothing was written, since the client does not read; then ASGI's
    `send` waits for it. Must not be called after a part of an answer was sent."""
    if cycle.disconnected:
        return True
    if cycle.flow.write_paused:
        return False
    lines = [STATUS_LINE[status]]
    for name, value in cycle.default_headers:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"content-length: %d\r\ncontent-type: application/json\r\n" % len(content))
    lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
    lines.append(content)
    cycle.waiting_for_100_continue = False
    cycle.response_started = True
    cycle.transport.write(b"".join(lines))
    cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True
