"""The items of a live connection, as types: what a client may say, and what it is told.

Owns their names, fields and bounds of single fields. `spec/asyncapi.yaml` says the same, and a test holds the two
together. Does not own how items become bytes (`api.live_formats`), nor what is done about them (`api.live_session`).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from imray.core.pages import SEQ_MAX

REF_MAX = 2**53 - 1
"""The largest whole number that every reader of JSON takes exactly."""

Ref: TypeAlias = Annotated[int, msgspec.Meta(ge=-REF_MAX, le=REF_MAX)]
_Seq: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)]


class _Said(msgspec.Struct, tag_field="t", forbid_unknown_fields=True, gc=False):
    """What a client says. A field that is not known here is an error."""


class _Told(msgspec.Struct, tag_field="t", omit_defaults=True, gc=False):
    """What a client is told. What is null is left out."""


class AuthItem(_Said, tag="auth"):
    """The token, or a newer one."""

    token: str
    ref: Ref | None = None


class SendItem(_Said, tag="send"):
    """As `POST /v1/conversations/{conv_id}/messages`."""

    ref: Ref
    conv_id: str
    client_msg_id: str
    body: str
    content_type: str | None = None
    topic: str | None = None
    client_ts: int | float | None = None
    sender: str | None = None


class SubscribeItem(_Said, tag="subscribe"):
    """Every message above `after`, or from now on."""

    ref: Ref
    conv_id: str
    after: _Seq | None = None
    passive: bool = False


class UnsubscribeItem(_Said, tag="unsubscribe"):
    """Nothing of it any more."""

    ref: Ref
    conv_id: str


class PullItem(_Said, tag="pull"):
    """As `GET /v1/conversations/{conv_id}/messages`."""

    ref: Ref
    conv_id: str
    after: _Seq = 0
    before: Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)] | None = None
    limit: int | None = None
    order: Literal["asc", "desc"] = "asc"
    topic: str | None = None


class ReadItem(_Said, tag="read"):
    """The caller has read up to here."""

    ref: Ref
    conv_id: str
    seq: _Seq


class SignalItem(_Said, tag="signal"):
    """Told to who listens now, and forgotten."""

    conv_id: str
    kind: str
    data: msgspec.Raw
    ref: Ref | None = None


class PingItem(_Said, tag="ping"):
    """Is anybody there?"""

    ref: Ref


ClientItem: TypeAlias = (
    AuthItem | SendItem | SubscribeItem | UnsubscribeItem | PullItem | ReadItem | SignalItem | PingItem
)


class BadItem(msgspec.Struct, frozen=True, gc=False):
    """In the place of a client's item of a known kind with a good `ref`, and with a bad field."""

    ref: int
    why: str


class WelcomeItem(_Told, tag="welcome"):
    """First on every connection."""

    version: int
    sender: str
    service: bool
    expires_in_s: int
    ping_interval_s: float
    items_max: int
    frame_bytes_max: int


class AckItem(_Told, tag="ack"):
    """The message is durable."""

    ref: int
    conv_id: str
    conv_seq: int
    client_msg_id: str
    duplicate: bool
    epoch: int
    server_ts: int
    stable_seq: int


class ErrorItem(_Told, tag="error"):
    """As a problem document. Without a `ref` the connection is closed after it."""

    status: int
    kind: str
    detail: str
    ref: int | None = None
    retry_after_s: float | None = None
    conv_id: str | None = None
    conv_seq: int | None = None


class SubscribedItem(_Told, tag="subscribed"):
    """Every message above `after` follows."""

    ref: int
    conv_id: str
    after: int
    live: int
    stable_seq: int
    epoch: int


class LiveMessage(msgspec.Struct, omit_defaults=True, gc=False):
    """A message of the history. One of `body` and `body_base64` is set; in MessagePack `body` may be bytes."""

    conv_seq: int
    client_msg_id: str
    sender: str
    server_ts: int
    topic: str | None = None
    content_type: str | None = None
    client_ts: int | None = None
    body: str | None = None
    body_base64: str | None = None


class LiveHole(msgspec.Struct, rename={"low": "from", "high": "to"}, gc=False):
    """Numbers that will never be messages, and why."""

    low: int
    high: int
    reason: str


class MessagesItem(_Told, tag="messages"):
    """Every number above `after` up to `upto` is in `messages` or in `holes`."""

    conv_id: str
    after: int
    upto: int
    stable_seq: int
    messages: list[LiveMessage]
    holes: list[LiveHole]


class HeadItem(_Told, tag="head"):
    """To passive listeners: the last number, and how many are not read."""

    conv_id: str
    seq: int
    unread: int


class BehindItem(_Told, tag="behind"):
    """Messages above `after` up to `head` were left out."""

    conv_id: str
    after: int
    head: int


class EndedItem(_Told, tag="ended"):
    """A subscription is over; every message up to `after` was told."""

    conv_id: str
    after: int
    reason: str


class PageItem(_Told, tag="page"):
    """A page of history."""

    ref: int
    conv_id: str
    messages: list[LiveMessage]
    holes: list[LiveHole]
    stable_seq: int
    epoch: int
    next: int | None
    """No default: here null says something, that there is no more for now."""


class SignalledItem(_Told, tag="signal"):
    """Somebody's signal."""

    conv_id: str
    sender: str
    kind: str
    data: msgspec.Raw


class OkItem(_Told, tag="ok"):
    """It is done."""

    ref: int


class PongItem(_Told, tag="pong"):
    """Somebody is here."""

    ref: int


class ExpiringItem(_Told, tag="expiring"):
    """The token expires soon: send `auth`."""

    expires_in_s: int


class DrainItem(_Told, tag="drain"):
    """The gateway ends: come back after so long."""

    reconnect_in_s: float


ServerItem: TypeAlias = (
    WelcomeItem
    | AckItem
    | ErrorItem
    | SubscribedItem
    | MessagesItem
    | HeadItem
    | BehindItem
    | EndedItem
    | PageItem
    | SignalledItem
    | OkItem
    | PongItem
    | ExpiringItem
    | DrainItem
)
