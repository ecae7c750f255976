"""The handshake: both ends prove that they know the key, and say which version of the wire they speak. No networking.

    client -> server    prefix, nonce
    server -> client    prefix, bytes of content that it takes in a frame, nonce, proof
    client -> server    proof
    server -> client    Verdict

A proof is an HMAC-SHA256 under the key over who proves and everything that both said before. It shows who connects; it
does not hide or sign the frames that follow: where the network is not trusted, TLS does (`imray.rpc.tls`).

Each side is a generator: it yields what to write and how many bytes it wants next, and is sent just these.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Generator
from enum import IntEnum
from typing import NamedTuple

from imray.rpc.frames import FrameError

WIRE_VERSION = 3
"""Raised with every change of the handshake, of frames, or of a message: both ends must speak the same."""
_PREFIX = struct.Struct("<6sH")
_MAGIC = b"imrayR"
NONCE_BYTES = 32
_PROOF_BYTES = 32
_LIMIT = struct.Struct("<Q")
_REFUSED_BYTES_MAX = 1024
"""What another version may still send before it has read which one this is. Closing at once could lose that answer."""


class Verdict(IntEnum):
    """What the server says to a client that knows the key."""

    ACCEPTED = 1
    FULL = 2
    """It has as many connections as it may have."""


class Step(NamedTuple):
    """What one side does next."""

    write: bytes
    want: int
    """Bytes to read; at least 1."""


ServerHandshake = Generator[Step, bytes, None]
ClientHandshake = Generator[Step, bytes, int]


def prefix(version: int = WIRE_VERSION) -> bytes:
    """The first bytes of each side; their form is the same in all versions."""
    return _PREFIX.pack(_MAGIC, version)


def _version(said: bytes) -> int:
    magic, version = _PREFIX.unpack(said)
    if magic != _MAGIC:
        raise FrameError("the other end does not speak imray's RPC")
    return int(version)


def _wrong_version(theirs: int) -> FrameError:
    return FrameError(f"the other end speaks version {theirs} of imray's RPC, this end {WIRE_VERSION}")


def _proof(key: bytes, who: bytes, said: bytes) -> bytes:
    return hmac.new(key, who + said, hashlib.sha256).digest()


def server_handshake(key: bytes, nonce: bytes, frame_bytes_max: int) -> ServerHandshake:
    """The server's side up to the client's proof; its verdict is the caller's. FrameError: it must not be let in."""
    first = yield Step(b"", _PREFIX.size)
    theirs = _version(first)
    if theirs != WIRE_VERSION:
        yield Step(prefix(), _REFUSED_BYTES_MAX)
        raise _wrong_version(theirs)
    said = first + (yield Step(b"", NONCE_BYTES))
    mine = prefix() + _LIMIT.pack(frame_bytes_max) + nonce
    said += mine
    proof = yield Step(mine + _proof(key, b"server", said), _PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(key, b"client", said)):
        raise FrameError("the other end does not know the key")


def client_handshake(key: bytes, nonce: bytes) -> ClientHandshake:
    """The client's side. Returns how many bytes of content the server takes in a frame. FrameError: not connected."""
    said = prefix() + nonce
    first = yield Step(said, _PREFIX.size)
    theirs = _version(first)
    if theirs != WIRE_VERSION:
        raise _wrong_version(theirs)
    rest = yield Step(b"", _LIMIT.size + NONCE_BYTES + _PROOF_BYTES)
    said += first + rest[:-_PROOF_BYTES]
    if not hmac.compare_digest(rest[-_PROOF_BYTES:], _proof(key, b"server", said)):
        raise FrameError("the other end does not know the key")
    verdict = yield Step(_proof(key, b"client", said), 1)
    if verdict[0] == Verdict.FULL:
        raise FrameError("the other end has no room for another connection")
    if verdict[0] != Verdict.ACCEPTED:
        raise FrameError(f"the other end said {verdict[0]} at the end of the handshake")
    return int(_LIMIT.unpack_from(rest)[0])
