"""What goes over the wire as JSON: requests and answers of `/v1`, and the problem document of every error."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_ID = "128 bit: a UUID (36 or 32 characters), a ULID (26) or base64 (22, or 24 with '=='). Keep it over retries."


class SendRequest(BaseModel):
    """One message. Sent again with the same `client_msg_id` it gets the same numbers and writes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    client_msg_id: str = Field(description=_ID, examples=["0190b0f2-6f2e-7c3a-9d27-0242ac120002"])
    body: str = Field(description="Text. Its UTF-8 bytes count against the body limit (default 64 KiB).")
    content_type: str | None = Field(None, description="Media type of the body; none means text/plain.")
    topic: str | None = Field(None, description="Topic inside the conversation, 1 to 128 bytes.")
    client_ts: int | None = Field(
        None, ge=0, lt=2**53, description="The sender's clock, ms since 1970 UTC. Never used for order."
    )
    sender: str | None = Field(None, description="Only for tokens with the role `service`: who says it.")


class BatchMessage(SendRequest):
    """One message of a batch."""

    conv_id: str = Field(description="The conversation, 1 to 128 bytes of UTF-8.")


class BatchRequest(BaseModel):
    """Many messages, over one or several conversations. Their order is kept per conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    messages: list[BatchMessage] = Field(min_length=1)


class Offset(BaseModel):
    """Where in the log the message stands."""

    shard: int
    segment: int
    row: int


class SendResponse(BaseModel):
    """The message is durable and has its number."""

    conv_id: str
    conv_seq: int
    client_msg_id: str = Field(description="The id's 128 bits in UUID notation.")
    duplicate: bool = Field(description="True: it was stored by an earlier send; these are its first numbers.")
    epoch: int = Field(description="The incarnation of the shard's writer that stored it.")
    offset: Offset
    server_ts: int = Field(description="When the server committed it, ms since 1970 UTC. Never used for order.")
    stable_seq: int = Field(description="Everything in the conversation up to this number is final.")


class BatchOutcome(BaseModel):
    """What became of one message. `status` says it as HTTP would; numbers stand for 200, 201 and 409."""

    status: Literal[200, 201, 409, 500, 503, 504] = Field(
        description="201 stored, 200 a retry, 409 the id was used with another payload (`conv_seq` is the "
        "first one's), 503 not written, retry later, 504 unknown, retry with the same id, 500 the log is corrupt."
    )
    conv_id: str
    client_msg_id: str
    conv_seq: int | None = None
    duplicate: bool | None = None
    epoch: int | None = None
    offset: Offset | None = None
    server_ts: int | None = None
    stable_seq: int | None = None
    detail: str | None = None


class BatchResponse(BaseModel):
    """One outcome for each message, in the order of the request."""

    results: list[BatchOutcome]
    created: int
    duplicates: int
    failed: int


class Message(BaseModel):
    """One message of the history. Exactly one of `body` and `body_base64` is set."""

    conv_seq: int
    client_msg_id: str
    sender: str
    topic: str | None = None
    content_type: str | None = None
    client_ts: int | None = None
    server_ts: int
    body: str | None = None
    body_base64: str | None = Field(None, description="The body's bytes where they are not UTF-8 text.")


class Hole(BaseModel):
    """Numbers that will never be messages, and why."""

    model_config = ConfigDict(populate_by_name=True)
    from_seq: int = Field(alias="from")
    to_seq: int = Field(alias="to")
    reason: str


class HistoryResponse(BaseModel):
    """Messages with after < conv_seq < before, in the asked order, final ones only (up to `stable_seq`)."""

    conv_id: str
    messages: list[Message]
    holes: list[Hole]
    stable_seq: int
    epoch: int
    next: int | None = Field(
        description="For the next page: pass it as `after` (order=asc) or `before` (order=desc). null: no more for now."
    )


class HeadResponse(BaseModel):
    """Where a conversation stands. A conversation nobody wrote to has `conv_seq` 0."""

    conv_id: str
    conv_seq: int
    stable_seq: int
    epoch: int
    shard: int


class TopicsRequest(BaseModel):
    """How a conversation is to be spread."""

    model_config = ConfigDict(extra="forbid")
    topics: int = Field(ge=0, le=99, description="Sub-topics that take its sends; 0: its home shard alone.")


class TopicsResponse(BaseModel):
    """How a conversation is spread now."""

    conv_id: str
    topics: int


class VersionResponse(BaseModel):
    """Which imray this is."""

    name: Literal["imray"] = "imray"
    version: str
    cluster_id: str
    shards: int


class ReadyResponse(BaseModel):
    """Whether every shard answers; `shards` maps each one that does not to its reason."""

    ready: bool
    shards: dict[str, str]


class Problem(BaseModel):
    """RFC 9457 problem details. `detail` says what to do."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(description="urn:imray:problem:invalid | conflict | busy | unavailable | corrupt | ...")
    title: str
    status: int
    detail: str
