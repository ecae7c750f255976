"""What a client saw, as JSON lines: written by test clients, read by the checker.

Every event has `t` (time.monotonic_ns, comparable between the processes of one machine), `client` and `ev`:

- send: conv, id, payload (a hash) - before each try; a retry is another send of the same id
- ack: conv, id, seq, duplicate, stable (null where the answer had none) - an answer with a number
- conflict: conv, id, seq; unknown: conv, id; refused: conv, id (not written)
- read: conv, after, upto, rows [[seq, id, payload]], holes [[from, to, reason]], stable, t0 (when it was asked),
  final (optional; it belongs to the last complete reading) - one page that answers for after < n <= upto
- stable: conv, stable - a published stable_seq seen elsewhere

And of those who listen, `client` being one device with one subscription to each conversation at a time:

- listen: conv, after - everything above `after` is to be shown from now on, until unlisten or the end
- shown: conv, rows [[seq, id, payload]] - in the order in which they were shown. One event may tell of many, of several
  frames, too: its `t` is when the last one had been shown
- told_hole: conv, from, to, reason - these numbers are no messages, and will be none
- relisten: conv, after - the connection was lost or fell behind, and there is a new one from what was shown last
- unlisten: conv - what comes from now on is not awaited any more

An id is written in one spelling everywhere. `unknown` ends a try: what arrives for that try later is not recorded.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from types import TracebackType
from typing import Any, NamedTuple, Self


class MalformedError(Exception):
    """A file is not a record of events; says file and line."""


class Send(NamedTuple):
    """A try."""

    t: int
    client: str
    id: str
    payload: str


class Answer(NamedTuple):
    """What a try was answered; `seq` of an ack or a conflict, `stable` of an ack."""

    t: int
    client: str
    id: str
    kind: str
    seq: int = 0
    duplicate: bool = False
    stable: int | None = None


class Heard(NamedTuple):
    """What happened to a listener. `rows` of shown; `low` and `high` of told_hole; `low` of listen and relisten."""

    t: int
    client: str
    kind: str
    rows: Sequence[tuple[int, str, str]] = ()
    low: int = 0
    high: int = 0
    reason: str = ""


class Read(NamedTuple):
    """One page; it covers after < n <= upto, and no further than `stable`."""

    t: int
    t0: int
    after: int
    upto: int
    rows: list[tuple[int, str, str]]
    holes: list[tuple[int, int, str]]
    stable: int
    final: bool


@dataclass(slots=True)
class Conversation:
    """All that was seen of one conversation, by all clients. `stables`: (t, stable_seq)."""

    sends: list[Send] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    stables: list[tuple[int, int]] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    shown: dict[tuple[int, str, str], int] = field(default_factory=dict)
    """Each message that was shown to anybody, and when first. Thousands listen: rows of `heard` are these keys."""
    _rows: dict[tuple[int, str, str], tuple[int, str, str]] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        """One event of this conversation; KeyError, TypeError or ValueError where it is none."""
        kind, t, client = event["ev"], _int(event["t"]), _text(event["client"])
        if kind == "read":
            self.reads.append(_read(t, event))
        elif kind == "stable":
            self.stables.append((t, _int(event["stable"])))
        elif kind == "send":
            self.sends.append(Send(t, client, _text(event["id"]), _text(event["payload"])))
        elif kind == "ack":
            stable = None if event["stable"] is None else _int(event["stable"])
            known = (_int(event["seq"], 1), _flag(event["duplicate"]), stable)
            self.answers.append(Answer(t, client, _text(event["id"]), kind, *known))
        elif kind == "conflict":
            self.answers.append(Answer(t, client, _text(event["id"]), kind, _int(event["seq"], 1)))
        elif kind in ("unknown", "refused"):
            self.answers.append(Answer(t, client, _text(event["id"]), kind))
        elif kind == "shown":
            self.heard.append(Heard(t, client, kind, self._shown(t, event["rows"])))
        elif kind in ("listen", "relisten"):
            self.heard.append(Heard(t, client, kind, low=_int(event["after"])))
        elif kind == "told_hole":
            low = _int(event["from"], 1)
            hole = (low, _int(event["to"], low), _reason(event["reason"]))
            self.heard.append(Heard(t, client, kind, (), *hole))
        elif kind == "unlisten":
            self.heard.append(Heard(t, client, kind))
        else:
            raise ValueError(f"no such event: {kind!r}")

    def _shown(self, t: int, rows: list[Any]) -> list[tuple[int, str, str]]:
        """The rows of a shown, each kept in memory once, however many were shown it."""
        found = []
        for seq, message_id, payload in rows:
            row = (seq, message_id, payload)
            kept = self._rows.get(row)
            if kept is None:
                kept = (_int(seq, 1), _text(message_id), _text(payload))
                self._rows[kept] = kept
            found.append(kept)
            self.shown[kept] = min(t, self.shown.get(kept, t))
        return found


@dataclass
class Window:
    """The tries of one id by one client that an answer may belong to."""

    asked: int
    payloads: set[str] = field(default_factory=set)
    open: int = 0


def tries(c: Conversation) -> Iterator[tuple[Answer, Window | None]]:
    """Each answer with the tries that it may answer; None where its client had not sent the id."""
    windows: dict[tuple[str, str], Window] = {}
    both: list[Send | Answer] = sorted([*c.sends, *c.answers], key=lambda e: (e.t, isinstance(e, Answer)))
    for e in both:
        window = windows.get((e.client, e.id))
        if isinstance(e, Answer):
            if window is not None:
                window.open -= 1
            yield e, window
            continue
        if window is None or window.open <= 0:
            window = windows[e.client, e.id] = Window(e.t)
        window.payloads.add(e.payload)
        window.open += 1


class EventLog:
    """Appends events to a file, each line flushed: what a killed client saw until then stays readable."""

    def __init__(self, path: Path, client: str) -> None:
        _mend(path)
        self._file = path.open("ab")
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def send(self, conv: str, message_id: str, payload: str) -> None:
        """About to try (again)."""
        self._write("send", conv=conv, id=message_id, payload=payload)

    def ack(self, conv: str, message_id: str, seq: int | None, duplicate: bool, stable: int | None) -> None:
        """An answer with a number. One without is written too, and the checker calls the file malformed."""
        self._write("ack", conv=conv, id=message_id, seq=seq, duplicate=duplicate, stable=stable)

    def conflict(self, conv: str, message_id: str, seq: int) -> None:
        """The id has another payload; `seq` is the first's."""
        self._write("conflict", conv=conv, id=message_id, seq=seq)

    def unknown(self, conv: str, message_id: str) -> None:
        """No answer, or one that says nobody knows."""
        self._write("unknown", conv=conv, id=message_id)

    def refused(self, conv: str, message_id: str) -> None:
        """An answer that says it was not written."""
        self._write("refused", conv=conv, id=message_id)

    def stable(self, conv: str, stable: int) -> None:
        """A published stable_seq."""
        self._write("stable", conv=conv, stable=stable)

    def listen(self, conv: str, after: int, again: bool = False) -> None:
        """A subscription is there; `again`: after one that was lost, from what was shown last."""
        self._write("relisten" if again else "listen", conv=conv, after=after)

    def shown(self, conv: str, rows: Iterable[Sequence[Any]]) -> None:
        """Messages, in the order in which they were shown since the last event of this client."""
        self._write("shown", conv=conv, rows=[list(r) for r in rows])

    def told_hole(self, conv: str, low: int, high: int, reason: str) -> None:
        """These numbers are no messages."""
        self._write("told_hole", conv=conv, **{"from": low, "to": high}, reason=reason)

    def unlisten(self, conv: str) -> None:
        """It does not listen any more."""
        self._write("unlisten", conv=conv)

    def as_client(self, client: str) -> EventLog:
        """The same file for another client of this process."""
        other = copy(self)
        other._client = client
        return other

    def read(
        self,
        conv: str,
        after: int,
        upto: int,
        rows: Iterable[Sequence[Any]],
        holes: Iterable[Sequence[Any]],
        stable: int,
        t0: int,
        final: bool = False,
    ) -> None:
        """One page of history, asked at `t0`."""
        known = {"rows": [list(r) for r in rows], "holes": [list(h) for h in holes]}
        self._write("read", conv=conv, after=after, upto=upto, **known, stable=stable, t0=t0, final=final)

    def _write(self, event: str, **fields: Any) -> None:
        line = {"t": time.monotonic_ns(), "client": self._client, "ev": event, **fields}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()


def read_events(path: Path, into: dict[str, Conversation]) -> None:
    """Add a file's events to their conversations; a torn last line (its client was killed) is left out."""
    for number, line in _lines(path):
        try:
            event = json.loads(line)
        except ValueError as e:
            if not line.endswith(b"\n"):
                return
            raise MalformedError(f"{path}, line {number}: not JSON ({e})") from e
        try:
            into.setdefault(_text(event["conv"]), Conversation()).take(event)
        except KeyError as e:
            raise MalformedError(f"{path}, line {number}: an event without {e}") from e
        except (TypeError, ValueError) as e:
            raise MalformedError(f"{path}, line {number}: no event ({e})") from e


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _mend(path: Path) -> None:
    """Cut a torn last line off, or what is appended would stand behind it and be torn too."""
    if path.exists():
        with path.open("rb+") as file:
            whole = file.read()
            if whole and not whole.endswith(b"\n"):
                file.truncate(whole.rfind(b"\n") + 1)
                os.fsync(file.fileno())


def _read(t: int, event: dict[str, Any]) -> Read:
    rows = [(_int(seq, 1), _text(message_id), _text(payload)) for seq, message_id, payload in event["rows"]]
    holes = [(_int(low, 1), _int(high, low), _reason(why)) for low, high, why in event["holes"]]
    span = (_int(event["t0"], most=t), _int(event["after"]), _int(event["upto"]))
    return Read(t, *span, rows, holes, _int(event["stable"]), _flag(event.get("final", False)))


def _int(value: Any, least: int = 0, most: int | None = None) -> int:
    if type(value) is not int or value < least or (most is not None and value > most):
        bound = "" if most is None else f" to {most}"
        raise ValueError(f"{value!r} is not a number from {least}{bound}")
    return value


def _text(value: Any) -> str:
    """Interned: the same id stands in many events."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return intern(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def _reason(value: Any) -> str:
    """None is no reason: for the invariants to say, not for the format."""
    return "" if value is None else _text(value)
