"""What goes over the wire as JSON: requests and answers of `/v1`, and the problem document of every error.

States every bound that the code enforces; those that settings decide are put in by `api.docs`. JSON Schema counts
characters where the code counts bytes of UTF-8, so of a text `maxLength` says less than its description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from api.auth import SENDER_BYTES_MAX
from api.checks import CLIENT_TS_MAX, CONTENT_TYPE_BYTES_MAX, TOPIC_BYTES_MAX
from imray.core.routing import CONV_ID_BYTES_MAX, PARTITIONS_MAX

TEXT_PATTERN = r"^[^\u0000-\u001f\u007f]+$"
"""What `imray.core.routing.check_text` takes, its length aside."""
_ID_PATTERNS = (
    "[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",  # a UUID
    "[0-9A-Fa-f]{32}",  # the same without hyphens
    "[0-7OoIiLl][0-9A-TV-Za-tv-z]{25}",  # a ULID: no U, and its first character holds three bits
    "[A-Za-z0-9+/_-]{21}[AQgw](==)?",  # base64: its last character holds two bits
)
CLIENT_MSG_ID_PATTERN = f"^({'|'.join(_ID_PATTERNS)})$"
_UUID_PATTERN = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


USER_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+$"
"""As TEXT_PATTERN, and nothing that is not seen and can look like another's name."""


def text_schema(bytes_max: int, pattern: str = TEXT_PATTERN) -> dict[str, Any]:
    """The schema of a text of 1 to `bytes_max` bytes without control characters."""
    return {"type": "string", "minLength": 1, "maxLength": bytes_max, "pattern": pattern}


def text_of(bytes_max: int, what: str, pattern: str = TEXT_PATTERN) -> WithJsonSchema:
    """The schema of a text, described."""
    bounds = f"1 to {bytes_max} bytes of UTF-8 (`maxLength` counts characters), no control characters."
    return WithJsonSchema({**text_schema(bytes_max, pattern), "description": f"{what} {bounds}"})


def _whole(what: str, **bounds: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "integer", **bounds, "description": what} if what else {"type": "integer", **bounds})


# Schemas only: `api.checks` is what validates requests.
_ID = {
    "type": "string",
    "pattern": CLIENT_MSG_ID_PATTERN,
    "description": "128 bit: a UUID (36 or 32 characters), a ULID (26) or base64 (22, or 24 with '=='). Keep it over "
    "retries.",
    "examples": ["0190b0f2-6f2e-7c3a-9d27-0242ac120002"],
}
_ClientMsgId = Annotated[str, WithJsonSchema(_ID)]
ConvId = Annotated[str, text_of(CONV_ID_BYTES_MAX, "The conversation.")]
_Topic = Annotated[str, text_of(TOPIC_BYTES_MAX, "Topic inside the conversation.")]
_ContentType = Annotated[str, text_of(CONTENT_TYPE_BYTES_MAX, "Media type of the body; none means text/plain.")]
_Sender = Annotated[str, text_of(SENDER_BYTES_MAX, "Only for tokens with the role `service`: who says it.")]
_ClientTs = Annotated[
    int,
    _whole("The sender's clock, ms since 1970 UTC. Never used for order.", minimum=0, maximum=CLIENT_TS_MAX),
]
_Uuid = Annotated[
    str, WithJsonSchema({"type": "string", "pattern": _UUID_PATTERN, "description": "128 bits in UUID notation."})
]
Count = Annotated[int, _whole("", minimum=0)]
_Seq = Annotated[int, _whole("", minimum=1)]

PathConvId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=CONV_ID_BYTES_MAX,
        pattern=TEXT_PATTERN,
        description=f"The conversation, 1 to {CONV_ID_BYTES_MAX} bytes of UTF-8 (`maxLength` counts characters), no "
        "control characters. A '/' in it is sent as %2F.",
    ),
]


class SendRequest(BaseModel):
    """One message. Sent again with the same `client_msg_id` it gets the same numbers and writes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    client_msg_id: _ClientMsgId
    body: str = Field(description="Text. Its limit counts bytes of UTF-8 (`maxLength` counts characters).")
    content_type: _ContentType | None = None
    topic: _Topic | None = None
    client_ts: _ClientTs | None = None
    sender: _Sender | None = None


class BatchMessage(SendRequest):
    """One message of a batch."""

    conv_id: ConvId


class BatchRequest(BaseModel):
    """Many messages, over one or several conversations. Their order is kept per conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    messages: list[BatchMessage] = Field(min_length=1)


class Offset(BaseModel):
    """Where in the log the message stands."""

    shard: Count
    segment: Count
    row: Count


class SendResponse(BaseModel):
    """The message is durable and has its number."""

    conv_id: ConvId
    conv_seq: _Seq
    client_msg_id: _Uuid
    duplicate: bool = Field(description="True: it was stored by an earlier send; these are its first numbers.")
    epoch: Count = Field(description="The incarnation of the shard's writer that stored it.")
    offset: Offset
    server_ts: Count = Field(description="When the server committed it, ms since 1970 UTC. Never used for order.")
    stable_seq: Count = Field(description="Everything in the conversation up to this number is final.")


class BatchOutcome(BaseModel):
    """What became of one message. `status` says it as HTTP would; numbers stand for 200, 201 and 409."""

    status: Literal[200, 201, 403, 409, 422, 500, 503, 504] = Field(
        description="201 stored, 200 a retry, 403 the sender may not send there, 409 the id was used with another "
        "payload (`conv_seq` is the first one's), 422 not valid, 503 not written, retry later, 504 unknown, retry with "
        "the same id, 500 the log is corrupt."
    )
    conv_id: ConvId
    client_msg_id: _Uuid
    conv_seq: _Seq | None = None
    duplicate: bool | None = None
    epoch: Count | None = None
    offset: Offset | None = None
    server_ts: Count | None = None
    stable_seq: Count | None = None
    detail: str | None = None


class BatchResponse(BaseModel):
    """One outcome for each message, in the order of the request."""

    results: list[BatchOutcome] = Field(min_length=1)
    created: Count
    duplicates: Count
    failed: Count


class Message(BaseModel):
    """One message of the history. Exactly one of `body` and `body_base64` is set."""

    conv_seq: _Seq
    client_msg_id: _Uuid
    sender: str
    topic: str | None = None
    content_type: str | None = None
    client_ts: _ClientTs | None = None
    server_ts: Count
    body: str | None = None
    body_base64: str | None = Field(None, description="The body's bytes where they are not UTF-8 text.")


class Hole(BaseModel):
    """Numbers that will never be messages, and why."""

    model_config = ConfigDict(populate_by_name=True)
    from_seq: _Seq = Field(alias="from")
    to_seq: _Seq = Field(alias="to")
    reason: str


class HistoryResponse(BaseModel):
    """Messages with after < conv_seq < before, in the asked order, final ones only (up to `stable_seq`)."""

    conv_id: ConvId
    messages: list[Message]
    holes: list[Hole]
    stable_seq: Count
    epoch: Count
    next: Count | None = Field(
        description="For the next page: pass it as `after` (order=asc) or `before` (order=desc). null: no more for now."
    )


class HeadResponse(BaseModel):
    """Where a conversation stands. A conversation nobody wrote to has `conv_seq` 0."""

    conv_id: ConvId
    conv_seq: Count
    stable_seq: Count
    epoch: Count
    shard: Count


class TopicsRequest(BaseModel):
    """How a conversation is to be spread."""

    model_config = ConfigDict(extra="forbid")
    topics: int = Field(ge=0, le=PARTITIONS_MAX, description="Partitions that take its sends; 0: its home shard alone.")


class TopicsResponse(BaseModel):
    """How a conversation is spread now."""

    conv_id: ConvId
    topics: int = Field(ge=0, le=PARTITIONS_MAX)


class VersionResponse(BaseModel):
    """Which imray this is."""

    name: Literal["imray"] = "imray"
    version: str
    cluster_id: str
    shards: _Seq


class LiveResponse(BaseModel):
    """The gateway's process answers."""

    live: Literal[True] = True


class ShardStatus(BaseModel):
    """Figures of one shard. `state` is "serving", or in a word why not; `detail` says more. Others depend on it."""

    model_config = ConfigDict(extra="allow")
    shard: Count
    state: str
    detail: str


class StatusResponse(BaseModel):
    """Figures of every shard."""

    shards: list[ShardStatus] = Field(min_length=1)


class ReadyResponse(BaseModel):
    """Whether every shard answers; `shards` maps each one that does not to its reason."""

    ready: bool
    shards: dict[str, str]


class Problem(BaseModel):
    """RFC 9457 problem details. `detail` says what to do."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(
        description="urn:imray:problem:invalid | conflict | busy | unavailable | corrupt | ...",
        pattern="^urn:imray:problem:[a-z-]+$",
    )
    title: str
    status: int = Field(ge=400, le=599)
    detail: str


class Conflict(Problem):
    """The id was used with another payload: where the first message stands."""

    conv_id: ConvId
    conv_seq: _Seq
