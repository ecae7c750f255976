"""The calls of the HTTP contract, each a generator (see `call`): what is asked and how the answer is read.

Owns paths, request bodies and the ids of messages that have none. Does not own I/O, nor the calls about members
(`calls_members`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol
from urllib.parse import quote

import orjson
import pyarrow as pa

from imray.client.arguments import check_conversation, check_message
from imray.client.arrow import RETRIED_OUTCOMES, SETTLED_OUTCOMES, UNKNOWN_OUTCOME, ArrowBatch
from imray.client.call import Attempts, Call, Environment, HttpRequest, HttpResponse, R
from imray.client.errors import Outcomes, ServerError
from imray.client.models import (
    Head,
    HistoryPage,
    Json,
    Order,
    Outcome,
    Outgoing,
    Ready,
    SendResult,
    Version,
    new_client_msg_id,
)
from imray.core.errors import InvalidError, UnavailableError
from imray.core.ids import format_client_msg_id, parse_client_msg_id

JSON_HEADERS = {"content-type": "application/json"}
_BATCH_PATH = "/v1/messages:batch"


def conversation_path(conv_id: str) -> str:
    """The path of a conversation; every conv_id is one segment of it, whatever it holds."""
    check_conversation(conv_id)
    return f"/v1/conversations/{path_segment(conv_id)}"


def path_segment(text: str) -> str:
    """A text as one segment of a path."""
    segment = quote(text, safe="")
    if not text.strip("."):  # "." and ".." would be resolved away (RFC 3986, 5.2.4)
        segment = segment.replace(".", "%2E")
    return segment


class BatchInFlight(Protocol):
    """Messages on their way in one call: which are still open, and what became of the others."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def done(self) -> bool: ...

    def open_ids(self) -> tuple[str, ...]: ...

    def outcomes(self) -> Outcomes: ...

    def encode(self) -> bytes: ...

    def take(self, content: bytes) -> None: ...

    def lost(self) -> None: ...


class JsonBatch:
    """A batch of `Outgoing`, its ids given."""

    headers = JSON_HEADERS

    def __init__(self, messages: list[dict[str, str | int]]) -> None:
        self._messages = messages
        self._open = list(range(len(messages)))
        self._unsure: set[int] = set()
        """Those that an earlier try may have stored: a later refusal says nothing about that try."""
        self._outcomes: list[Outcome] = []

    @property
    def done(self) -> bool:
        return not self._open

    def open_ids(self) -> tuple[str, ...]:
        return tuple(str(self._messages[i]["client_msg_id"]) for i in self._open)

    def outcomes(self) -> list[Outcome] | None:
        return self._outcomes or None

    def encode(self) -> bytes:
        return encode_json({"messages": [self._messages[i] for i in self._open]})

    def lost(self) -> None:
        """A try may have stored every open message."""
        self._unsure.update(self._open)
        if self._outcomes:
            for i in self._open:
                self._outcomes[i] = _kept_unknown(self._outcomes[i])

    def take(self, content: bytes) -> None:
        results = [Outcome.of(r) for r in orjson.loads(content)["results"]]
        if len(results) != len(self._open):
            raise ValueError(f"{len(results)} outcomes for {len(self._open)} messages")
        if not self._outcomes:
            self._outcomes = list(results)
        for i, outcome in zip(self._open, results, strict=True):
            if outcome.status == UNKNOWN_OUTCOME:
                self._unsure.add(i)
            elif i in self._unsure and outcome.status not in SETTLED_OUTCOMES:
                outcome = _kept_unknown(outcome)
            self._outcomes[i] = outcome
        self._open = [i for i in self._open if self._outcomes[i].status in RETRIED_OUTCOMES]


class Calls:
    """Every call that a client has."""

    def __init__(self, env: Environment) -> None:
        self._env = env

    def send(self, message: Outgoing) -> Call[SendResult]:
        path = conversation_path(message.conv_id) + "/messages"
        fields = fields_of(message, self._env)
        del fields["conv_id"]
        ids = (str(fields["client_msg_id"]),)
        attempts = Attempts(self._env, lambda: ids)
        reply = yield from attempts.ask("POST", path, content=encode_json(fields), headers=JSON_HEADERS)
        if reply.status not in (200, 201):
            attempts.refuse(reply)
        return attempts.read(reply, SendResult.of)

    def send_batch(self, messages: Iterable[Outgoing | Mapping[str, Any]]) -> Call[list[Outcome]]:
        batch = JsonBatch([fields_of(outgoing(m), self._env) for m in messages])
        if not batch.done:
            yield from self._until_done(batch)
        return batch.outcomes() or []

    def send_arrow(self, rows: pa.Table | pa.RecordBatch) -> Call[pa.Table]:
        batch = ArrowBatch(rows)
        if batch.done:
            raise InvalidError("no rows to send")
        yield from self._until_done(batch)
        return batch.outcomes()

    def history(
        self, conv_id: str, after: int, before: int | None, limit: int, order: Order, topic: str | None = None
    ) -> Call[HistoryPage]:
        params: dict[str, str | int] = {"after": after, "limit": limit, "order": order}
        if topic is not None:
            params["topic"] = topic
        if before is not None:
            params["before"] = before
        attempts = Attempts(self._env)
        reply = yield from attempts.ask("GET", conversation_path(conv_id) + "/messages", params=params)
        return self._read_ok(attempts, reply, HistoryPage.of)

    def head(self, conv_id: str) -> Call[Head]:
        attempts = Attempts(self._env)
        reply = yield from attempts.ask("GET", conversation_path(conv_id))
        return self._read_ok(attempts, reply, Head.of)

    def set_topics(self, conv_id: str, topics: int) -> Call[int]:
        attempts = Attempts(self._env)
        path = conversation_path(conv_id) + "/topics"
        reply = yield from attempts.ask("PUT", path, content=encode_json({"topics": topics}), headers=JSON_HEADERS)
        if reply.status != 200:
            attempts.refuse(reply)
        return attempts.read(reply, lambda answer: int(answer["topics"]))

    def version(self) -> Call[Version]:
        attempts = Attempts(self._env)
        reply = yield from attempts.ask("GET", "/v1/version")
        return self._read_ok(attempts, reply, Version.of)

    def ready(self) -> Call[Ready]:
        """Asked once: "not ready" is an answer here, and so is no answer."""
        attempts = Attempts(self._env)
        timeout_s = min(self._env.timeout_s, self._env.policy.try_timeout_s)
        reply = yield HttpRequest("GET", "/readyz", timeout_s)
        if not isinstance(reply, HttpResponse):
            raise UnavailableError(reply.reason if reply else "no answer")
        if reply.status not in (200, 503):
            attempts.refuse(reply)
        try:
            return attempts.read(reply, Ready.of)
        except ServerError as e:
            if reply.status == 503:
                raise UnavailableError("status 503 from something in front of the server") from e
            raise

    def _read_ok(self, attempts: Attempts, reply: HttpResponse, of: Callable[[Json], R]) -> R:
        if reply.status != 200:
            attempts.refuse(reply)
        return attempts.read(reply, of)

    def _until_done(self, batch: BatchInFlight) -> Call[None]:
        """Ask until every message has a final outcome; only the open ones are asked again, in their order."""
        attempts = Attempts(self._env, batch.open_ids, batch.outcomes, batch.lost)
        while True:
            reply = yield from attempts.ask("POST", _BATCH_PATH, content=batch.encode(), headers=batch.headers)
            if not 200 <= reply.status < 300:
                attempts.refuse(reply)
            try:
                batch.take(reply.content)
            except (ValueError, KeyError, TypeError, AttributeError) as e:  # pyarrow's errors are ValueErrors
                raise attempts.not_understood(reply, e) from e
            if batch.done:
                return
            yield from attempts.pause(f"{len(batch.open_ids())} messages have no final outcome")


def fields_of(message: Outgoing, env: Environment) -> dict[str, str | int]:
    """The message as the contract has it, with its id; checks what the server could only refuse."""
    check_message(message)
    msg_id = message.client_msg_id
    if msg_id is None:
        msg_id = new_client_msg_id(env.unix_ms(), env.random_bytes(10))
    else:
        msg_id = format_client_msg_id(parse_client_msg_id(msg_id))
    fields = {name: value for name, value in vars(message).items() if value is not None}
    return fields | {"client_msg_id": msg_id}


def _kept_unknown(outcome: Outcome) -> Outcome:
    """The outcome of a message that one try may have stored and another did not."""
    if outcome.status == UNKNOWN_OUTCOME:
        return outcome
    detail = f"one try may have stored it; another ended with {outcome.status}: {outcome.detail or 'no detail'}"
    return replace(outcome, status=UNKNOWN_OUTCOME, detail=detail)


def outgoing(message: Outgoing | Mapping[str, Any]) -> Outgoing:
    """A message given as a mapping; InvalidError for fields that a message does not have."""
    if isinstance(message, Outgoing):
        return message
    try:
        return Outgoing(**message)
    except TypeError as e:
        raise InvalidError(f"not a message: {e}") from e


def encode_json(value: object) -> bytes:
    """JSON bytes; InvalidError for text that is no Unicode (lone surrogates) or a value of another type."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as e:
        raise InvalidError(f"it cannot be written as JSON: {e}") from e
