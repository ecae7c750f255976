"""What goes over the wire as JSON about members and cursors: schemas only, `api.members` is what validates requests."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from api.schemas import USER_PATTERN, ConvId, Count, text_of
from imray.core.members import USER_BYTES_MAX
from imray.core.pages import SEQ_MAX

_User = Annotated[str, text_of(USER_BYTES_MAX, "The user: the `sub` of its tokens.", USER_PATTERN)]

PathUser = Annotated[
    str,
    Path(
        min_length=1,
        max_length=USER_BYTES_MAX,
        pattern=USER_PATTERN,
        description=f"The user, 1 to {USER_BYTES_MAX} bytes of UTF-8 (`maxLength` counts characters), no control "
        "characters. A '/' in it is sent as %2F.",
    ),
]


class MemberOut(BaseModel):
    """A member: an owner changes members, a member sends, a reader reads."""

    model_config = ConfigDict(extra="forbid")
    user: _User
    role: Literal["owner", "member", "reader"]


class CreateRequest(BaseModel):
    """A conversation with members. The caller is an owner; a service names one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    public: bool = Field(False, description="Anybody may read and listen.")
    members: list[MemberOut] = Field([], max_length=1000)


class AddMembersRequest(BaseModel):
    """Who is to be in which role."""

    model_config = ConfigDict(extra="forbid", strict=True)
    members: list[MemberOut] = Field(min_length=1, max_length=1000)


class RemoveMembersRequest(BaseModel):
    """Who is to be no member any more."""

    model_config = ConfigDict(extra="forbid", strict=True)
    users: list[_User] = Field(min_length=1, max_length=1000)


class ChangedResponse(BaseModel):
    """The members are so, and that is durable."""

    conv_id: ConvId
    after: Count = Field(description="The change stands between this number and the next.")
    members: Count = Field(description="How many there are.")


class MembersResponse(BaseModel):
    """A page of members."""

    conv_id: ConvId
    public: bool
    total: Count
    members: list[MemberOut]
    next: str | None = Field(description="For the next page: pass it as `after`. null: no more.")


class CursorRequest(BaseModel):
    """How far the caller has read: at most to the conversation's last number."""

    model_config = ConfigDict(extra="forbid")
    seq: int = Field(ge=0, le=SEQ_MAX)


class CursorResponse(BaseModel):
    """How far the caller has read."""

    conv_id: ConvId
    seq: Count
