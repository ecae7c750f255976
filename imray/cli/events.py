"""What a replay's client did and saw, as JSON lines in the order in which it happened.

For the checker (`python -m tests.checker FILE`), which recomputes the invariants from nothing but these lines. The
format is that of `tests/checker/events.py`.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from imray.cli.replay_plan import Chat, Rows
from imray.cli.replay_send import CONFLICT
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
            self._write({"event": "send", **self._named(row), "sender": self._chat.senders.of(row), "body": text})

    def answered(self, rows: Rows, status: Rows, seq: Rows) -> None:
        """These rows have their outcome."""
        for row, code, number in zip(rows.tolist(), status.tolist(), seq.tolist(), strict=True):
            event = "conflict" if code == CONFLICT else "ack" if code in (200, 201) else None
            if event is not None:
                self._write({"event": event, **self._named(row), "conv_seq": number})

    def read(self, page: HistoryPage, after: int) -> None:
        """A page of history was read."""
        self._write(
            {
                "event": "read",
                "conv_id": page.conv_id,
                "after": after,
                "messages": [
                    {
                        "conv_seq": m.conv_seq,
                        "client_msg_id": m.client_msg_id,
                        "sender": m.sender,
                        "body": m.body if isinstance(m.body, str) else m.body.hex(),
                    }
                    for m in page.messages
                ],
                "holes": [{"from": h.from_seq, "to": h.to_seq, "reason": h.reason} for h in page.holes],
                "stable_seq": page.stable_seq,
                "next": page.next,
            }
        )

    def _named(self, row: int) -> dict[str, Any]:
        return {"conv_id": self._chat.conversations.of(row), "client_msg_id": self._chat.client_msg_id(row)}

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(event) + b"\n")
