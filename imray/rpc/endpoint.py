"""The words that both ends of an RPC share: where a process listens, what a frame holds, and that no answer came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Part: TypeAlias = bytes | bytearray | memoryview
Parts: TypeAlias = Sequence[Part]
"""The content of a frame, in its order. Large parts are written without being joined: who sends them must not change
them before the answer is there."""


@dataclass(frozen=True)
class Endpoint:
    """Where a process listens, and the key that a connection must prove to know."""

    host: str
    port: int
    key: bytes = field(repr=False)
    """Never shown: a log with it would let its reader in."""


class NoAnswerError(Exception):
    """The connection broke, or nothing came in time: whether the call was executed is unknown."""
