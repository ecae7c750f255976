"""What the client takes and gives: plain values, and how they are read from the server's JSON.

Fields are those of the HTTP contract (`api.schemas`); fields that this version does not know are ignored, so that a
newer server does not break an older client.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Order = Literal["asc", "desc"]
MemberRole = Literal["owner", "member", "reader"]
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Outgoing:
    """A message to send. Without `client_msg_id` the client makes one, before the first try."""

    conv_id: str
    body: str
    client_msg_id: str | None = None
    content_type: str | None = None
    topic: str | None = None
    client_ts: int | None = None
    """The sender's clock, ms since 1970 UTC. Never used for order."""
    sender: str | None = None
    """Only for tokens with the role `service`: who says it."""


@dataclass(frozen=True)
class Ack:
    """The message is durable and has its number: what every way of sending says."""

    conv_id: str
    conv_seq: int
    client_msg_id: str
    duplicate: bool
    """True: an earlier send, perhaps an earlier try of this call, stored it; these are its first numbers."""
    epoch: int
    server_ts: int
    stable_seq: int

    @classmethod
    def of_item(cls, item: Json) -> Ack:
        """From a live connection's `ack`."""
        return cls(**{name: item[name] for name in _ACK_FIELDS})


_ACK_FIELDS = ("conv_id", "conv_seq", "client_msg_id", "duplicate", "epoch", "server_ts", "stable_seq")


@dataclass(frozen=True)
class SendResult(Ack):
    """What HTTP says beside it: where in the logs the message stands."""

    shard: int
    segment: int
    row: int

    @classmethod
    def of(cls, answer: Json) -> SendResult:
        offset: Json = answer["offset"]
        fields = {name: answer[name] for name in _ACK_FIELDS}
        return cls(**fields, shard=offset["shard"], segment=offset["segment"], row=offset["row"])


@dataclass(frozen=True)
class Outcome:
    """What became of one message of a batch. `status` says it as HTTP would: 201 stored, 200 stored before, 409 the
    id was used with another payload (`conv_seq` is the first one's), 422 not valid and not written, 500 the log is
    corrupt; 503 not written and 504 unknown are left only where the deadline passed or a retry was refused. What one
    try left unknown stays 504 until another says whether it is stored."""

    status: int
    conv_id: str
    client_msg_id: str
    conv_seq: int | None = None
    duplicate: bool | None = None
    epoch: int | None = None
    shard: int | None = None
    segment: int | None = None
    row: int | None = None
    server_ts: int | None = None
    stable_seq: int | None = None
    detail: str | None = None

    @property
    def stored(self) -> bool:
        """Whether the message is durable."""
        return self.status in (200, 201)

    @classmethod
    def of(cls, answer: Json) -> Outcome:
        offset: Json = answer.get("offset") or {}
        flat = {name: answer.get(name) for name in _OUTCOME_OPTIONAL}
        where = {name: offset.get(name) for name in ("shard", "segment", "row")}
        return cls(answer["status"], answer["conv_id"], answer["client_msg_id"], **flat, **where)


_OUTCOME_OPTIONAL = ("conv_seq", "duplicate", "epoch", "server_ts", "stable_seq", "detail")


@dataclass(frozen=True)
class Message:
    """One message of the history. `body` is text where its bytes are UTF-8, else bytes."""

    conv_seq: int
    client_msg_id: str
    sender: str
    topic: str | None
    content_type: str | None
    client_ts: int | None
    server_ts: int
    body: str | bytes

    @classmethod
    def of(cls, answer: Json) -> Message:
        text = answer.get("body")
        return cls(
            conv_seq=answer["conv_seq"],
            client_msg_id=answer["client_msg_id"],
            sender=answer["sender"],
            topic=answer.get("topic"),
            content_type=answer.get("content_type"),
            client_ts=answer.get("client_ts"),
            server_ts=answer["server_ts"],
            body=text if text is not None else base64.b64decode(answer["body_base64"], validate=True),
        )


@dataclass(frozen=True)
class Hole:
    """Numbers from_seq..to_seq (both included) that will never be messages, and why."""

    from_seq: int
    to_seq: int
    reason: str


@dataclass(frozen=True)
class Unread:
    """Where a conversation stands, for somebody who does not look at it: its last number, and how many are unread."""

    conv_id: str
    conv_seq: int
    unread: int


@dataclass(frozen=True)
class LiveSignal:
    """Something that somebody does now, such as typing. It has no number, and is stored nowhere."""

    conv_id: str
    sender: str
    kind: str
    data: Any


@dataclass(frozen=True)
class HistoryPage:
    """Messages with after < conv_seq < before, in the asked order, final ones only (up to `stable_seq`)."""

    conv_id: str
    messages: list[Message]
    holes: list[Hole]
    stable_seq: int
    epoch: int
    next: int | None
    """For the next page: its `after` (order "asc") or `before` (order "desc"). None: no more for now."""

    @classmethod
    def of(cls, answer: Json) -> HistoryPage:
        return cls(
            conv_id=answer["conv_id"],
            messages=[Message.of(m) for m in answer["messages"]],
            holes=[Hole(h["from"], h["to"], h["reason"]) for h in answer["holes"]],
            stable_seq=answer["stable_seq"],
            epoch=answer["epoch"],
            next=answer["next"],
        )


@dataclass(frozen=True)
class Head:
    """Where a conversation stands. A conversation nobody wrote to has `conv_seq` 0."""

    conv_id: str
    conv_seq: int
    stable_seq: int
    epoch: int
    shard: int

    @classmethod
    def of(cls, answer: Json) -> Head:
        return cls(*(answer[name] for name in ("conv_id", "conv_seq", "stable_seq", "epoch", "shard")))


@dataclass(frozen=True)
class Member:
    """A user with a role in a conversation: an owner changes members, a member sends, a reader pulls and listens."""

    user: str
    role: MemberRole = "member"


@dataclass(frozen=True)
class MembersNow:
    """The members are as they were asked to be, and that is durable."""

    conv_id: str
    after: int
    """The change stands between this number and the next."""
    members: int
    """How many there are."""

    @classmethod
    def of(cls, answer: Json) -> MembersNow:
        return cls(answer["conv_id"], answer["after"], answer["members"])


@dataclass(frozen=True)
class Creation(MembersNow):
    """The conversation is there, as it was asked for."""

    created: bool
    """False: it was so already, perhaps by an earlier try of this call."""


@dataclass(frozen=True)
class MemberPage:
    """Some members of a conversation, in an order that does not change."""

    conv_id: str
    public: bool
    """Anybody may pull and listen."""
    total: int
    """How many there are on all pages."""
    members: list[Member]
    next: str | None
    """For the next page: its `after`. None: no more."""

    @classmethod
    def of(cls, answer: Json) -> MemberPage:
        return cls(
            conv_id=answer["conv_id"],
            public=answer["public"],
            total=answer["total"],
            members=[Member(m["user"], m["role"]) for m in answer["members"]],
            next=answer["next"],
        )


@dataclass(frozen=True)
class Ready:
    """Whether every shard answers; `shards` maps each one that does not to its reason."""

    ready: bool
    shards: dict[str, str]

    @classmethod
    def of(cls, answer: Json) -> Ready:
        return cls(answer["ready"], dict(answer["shards"]))


@dataclass(frozen=True)
class Version:
    """Which imray the server is."""

    name: str
    version: str
    cluster_id: str
    shards: int

    @classmethod
    def of(cls, answer: Json) -> Version:
        return cls(*(answer[name] for name in ("name", "version", "cluster_id", "shards")))


def new_client_msg_id(unix_ms: int, random_bytes: bytes) -> str:
    """A UUID version 7 (RFC 9562, 5.7) from the time and 10 random bytes: unique, and later ones sort later."""
    value = unix_ms << 80 | int.from_bytes(random_bytes[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    h = f"{value:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
