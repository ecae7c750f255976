"""The two sides of the handshake without a network: what each proves, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from imray.rpc.frames import FrameError
from imray.rpc.handshake import Step, client_handshake, prefix, server_handshake

_KEY = b"k" * 32
Tamper = Callable[[bytes, int], bytes]


class Side:
    """One side of a handshake without a network."""

    def __init__(self, generator: Generator[Step, bytes, Any]) -> None:
        self.generator = generator
        self.step: Step = next(generator)
        self.sent = self.step.write
        self.done = False
        self.result: Any = None

    def feed(self, inbox: bytearray) -> None:
        while not self.done and len(inbox) >= self.step.want:
            said = bytes(inbox[: self.step.want])
            del inbox[: self.step.want]
            try:
                self.step = self.generator.send(said)
            except StopIteration as end:
                self.done = True
                self.result = end.value
                return
            self.sent += self.step.write


def _meet(client: Side, server: Side, tamper: Tamper = lambda said, _at: said) -> None:
    """Let two sides speak; `tamper` gets everything that the server says and how much it said before."""
    to_server = bytearray()
    to_client = bytearray()
    heard = said = 0
    for _ in range(5):
        to_server += client.sent[heard:]
        heard = len(client.sent)
        server.feed(to_server)
        to_client += tamper(server.sent[said:], said)
        said = len(server.sent)
        if server.done:
            to_client += b"\x01"
        client.feed(to_client)


def test_two_that_know_the_key() -> None:
    client = Side(client_handshake(_KEY, b"c" * 32))
    server = Side(server_handshake(_KEY, b"s" * 32, 77))
    _meet(client, server)
    assert (client.done, server.done) == (True, True)
    assert client.result == 77


def test_each_refuses_another_key() -> None:
    with pytest.raises(FrameError, match="does not know the key"):
        _meet(Side(client_handshake(_KEY, b"c" * 32)), Side(server_handshake(b"x" * 32, b"s" * 32, 77)))
    server = Side(server_handshake(_KEY, b"s" * 32, 77))
    with pytest.raises(FrameError, match="does not know the key"):
        server.feed(bytearray(prefix() + b"c" * 32 + b"p" * 32))


def test_a_proof_is_of_its_side_and_its_nonces() -> None:
    server = Side(server_handshake(_KEY, b"s" * 32, 77))
    server.feed(bytearray(prefix() + b"c" * 32))
    its_own = server.sent[-32:]
    with pytest.raises(FrameError, match="does not know the key"):
        server.feed(bytearray(its_own))  # sent back to it
    client = Side(client_handshake(_KEY, b"d" * 32))
    with pytest.raises(FrameError, match="does not know the key"):
        client.feed(bytearray(server.sent))  # of another handshake


def test_every_byte_that_the_server_says_is_proved() -> None:
    length = 8 + 8 + 32 + 32
    for flipped in range(length):

        def flip(said: bytes, at: int, flipped: int = flipped) -> bytes:
            changed = bytearray(said)
            if at <= flipped < at + len(said):
                changed[flipped - at] ^= 1
            return bytes(changed)

        with pytest.raises(FrameError):
            _meet(Side(client_handshake(_KEY, b"c" * 32)), Side(server_handshake(_KEY, b"s" * 32, 77)), flip)


@pytest.mark.parametrize("verdict", [0, 2, 3, 255])
def test_a_verdict_that_is_no_acceptance(verdict: int) -> None:
    server = Side(server_handshake(_KEY, b"s" * 32, 77))
    client = Side(client_handshake(_KEY, b"c" * 32))
    server.feed(bytearray(client.sent))
    client.feed(bytearray(server.sent))
    assert not client.done
    with pytest.raises(FrameError, match="room" if verdict == 2 else f"said {verdict}"):
        client.feed(bytearray((verdict,)))
