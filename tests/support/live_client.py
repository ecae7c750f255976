"""A client of `live_system` by the `websockets` library: what the server says is read by another hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from api.live_formats import JSON, MSGPACK, Format
from tests.support.live_system import LiveServer, token_of

_TIMEOUT_S = 10.0
ID = "0198c0de-0000-7000-8000-000000000001"
CONV = "c"


class LiveClient:
    """One connection."""

    def __init__(self, socket: ClientConnection, spoken: Format) -> None:
        self.socket = socket
        self.format = spoken
        self._told: list[dict[str, Any]] = []

    def say(self, *items: dict[str, Any]) -> None:
        """One frame."""
        data = self.format.encode(list(items))
        self.socket.send(data.decode() if self.format is JSON else data)

    def hear(self, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """The next item. ConnectionClosed, TimeoutError: there is none."""
        while not self._told:
            data = self.socket.recv(timeout=timeout_s)
            assert isinstance(data, str) is (self.format is JSON)
            self._told += (msgspec.json if self.format is JSON else msgspec.msgpack).decode(data)
        return self._told.pop(0)

    def ask(self, item: dict[str, Any]) -> dict[str, Any]:
        """Say one item with a `ref`; its answer. What comes before that is heard later."""
        self.say(item)
        before = []
        while (told := self.hear()).get("ref") != item["ref"]:
            before.append(told)
        self._told = before + self._told
        return told

    def end(self) -> tuple[int | None, list[dict[str, Any]]]:
        """The code with which the server closes, and what it says before."""
        told = []
        try:
            while True:
                told.append(self.hear())
        except ConnectionClosed as e:
            return (None if e.rcvd is None else e.rcvd.code), told


@contextmanager
def joined(
    server: LiveServer,
    sender: str | None = "ada",
    service: bool = False,
    spoken: Format = JSON,
    token: str | None = None,
    **options: Any,
) -> Iterator[LiveClient]:
    """A connection with a token in its handshake, welcomed; without one where neither `sender` nor `token` is named."""
    if token is None and sender is not None:
        token = token_of(sender, service)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with connect(
        server.url,
        subprotocols=[Subprotocol(spoken.subprotocol)],
        additional_headers=headers,
        compression=None,
        max_size=None,
        close_timeout=1,
        **options,
    ) as socket:
        assert socket.subprotocol == spoken.subprotocol
        client = LiveClient(socket, spoken)
        if token is not None:
            assert client.hear()["t"] == "welcome"
        yield client


def every_item(conv_id: str = CONV) -> dict[str, dict[str, Any]]:
    """One of each item that has a `ref`, but for `auth`."""
    return {
        "send": {"t": "send", "ref": 1, "conv_id": conv_id, "client_msg_id": ID, "body": "x"},
        "subscribe": {"t": "subscribe", "ref": 2, "conv_id": conv_id},
        "unsubscribe": {"t": "unsubscribe", "ref": 3, "conv_id": conv_id},
        "pull": {"t": "pull", "ref": 4, "conv_id": conv_id},
        "read": {"t": "read", "ref": 5, "conv_id": conv_id, "seq": 2},
        "signal": {"t": "signal", "ref": 6, "conv_id": conv_id, "kind": "typing", "data": True},
        "ping": {"t": "ping", "ref": 7},
    }


BOTH_FORMATS = [JSON, MSGPACK]
