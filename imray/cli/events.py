"""What a replay's client did and saw, as JSON lines in the order in which it happened.

For the checker (`python -m tests.checker FILE`), which recomputes the invariants from nothing but these lines. The
format is that of `tests/checker/events.py`.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from imray.cli.replay_plan import Chat, Rows
from imray.cli.replay_send import CONFLICT, NEW, STORED_BEFORE
from imray.client import HistoryPage
from imray.core.errors import InvalidError


class EventLog:
    """A context manager over the file, which is made anew."""

    def __init__(self, path: Path, chat: Chat) -> None:
        self._chat = chat
        try:
            self._file = path.open("wb")
        except OSError as e:
            raise InvalidError(f"{path} cannot be written: {e.strerror}") from e

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def sends(self, rows: Rows) -> None:
        """The client is about to send these rows."""
        texts = self._chat.texts.take(rows).to_pylist()
        for row, text in zip(rows.tolist(), texts, strict=True):
            self._write({"ev": "send", **self._named(row), "payload": _digest(text)})

    def answered(self, rows: Rows, status: Rows, seq: Rows, stable_seq: Rows) -> None:
        """These rows have their outcome."""
        columns = (rows.tolist(), status.tolist(), seq.tolist(), stable_seq.tolist())
        for row, code, number, stable in zip(*columns, strict=True):
            if code == CONFLICT:
                self._write({"ev": "conflict", **self._named(row), "seq": number})
            elif code in (NEW, STORED_BEFORE):
                known = {"seq": number, "duplicate": code == STORED_BEFORE, "stable": stable}
                self._write({"ev": "ack", **self._named(row), **known})

    def read(self, page: HistoryPage, after: int, asked_ns: int) -> None:
        """A page of history was read; every conversation is read to its end, after all was sent."""
        self._write(
            {
                "ev": "read",
                "conv": page.conv_id,
                "after": after,
                "upto": page.next if page.next is not None else page.stable_seq,
                "rows": [[m.conv_seq, m.client_msg_id, _digest(m.body)] for m in page.messages],
                "holes": [[h.from_seq, h.to_seq, h.reason] for h in page.holes],
                "stable": page.stable_seq,
                "t0": asked_ns,
                "final": True,
            }
        )

    def _named(self, row: int) -> dict[str, object]:
        return {"conv": self._chat.conversations.of(row), "id": self._chat.client_msg_id(row)}

    def _write(self, event: dict[str, object]) -> None:
        self._file.write(orjson.dumps({"t": time.monotonic_ns(), "client": "replay", **event}) + b"\n")


def _digest(body: str | bytes) -> str:
    return hashlib.blake2b(body.encode() if isinstance(body, str) else body, digest_size=8).hexdigest()
