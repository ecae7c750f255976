"""The errors that only a client can have. What the engine and its clients share is in `imray.core.errors`."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from imray.core.errors import ImrayError, UnavailableError

if TYPE_CHECKING:
    import pyarrow as pa

    from imray.client.models import Outcome

E = TypeVar("E", bound=ImrayError)
Outcomes: TypeAlias = "list[Outcome] | pa.Table | None"
"""What became of a batch: one entry (of `send_arrow`: one row) a message; None where nothing is known."""


class AuthError(ImrayError):
    """The token is missing, expired or not allowed to do this; nothing was written. Get another token.

    `is_about_request`: the token was taken, and what was asked is not allowed to its bearer."""

    def __init__(self, detail: str, is_about_request: bool = False) -> None:
        super().__init__(detail, is_about_request)
        self.detail = detail
        self.is_about_request = is_about_request

    def __str__(self) -> str:
        return self.detail


class ConflictError(ImrayError):
    """What is there already is different; nothing was written.

    Of a send: the id was used in this conversation with another payload, and the caller has a bug. `client_msg_id` is
    that id, `conv_seq` the number of the first message with it (None where the server did not say).
    Of `create_conversation`: the conversation is there, with other members or otherwise public or not; look at them.
    `client_msg_id` is empty, and `conv_seq` None."""

    def __init__(self, detail: str, client_msg_id: str, conv_seq: int | None) -> None:
        super().__init__(detail, client_msg_id, conv_seq)
        self.detail = detail
        self.client_msg_id = client_msg_id
        self.conv_seq = conv_seq

    def __str__(self) -> str:
        return self.detail


class UnknownOutcomeError(UnavailableError):
    """The deadline passed, or a retry was refused, and messages are left that may be stored or not.

    Send them again later with the ids in `client_msg_ids`; it is safe. `outcomes` holds what became of each message
    of a batch, in the order of the request (the open ones with status 503, not written, or 504, unknown), or None
    where nothing is known."""

    def __init__(self, detail: str, client_msg_ids: tuple[str, ...], outcomes: Outcomes = None) -> None:
        super().__init__(detail, client_msg_ids, outcomes)
        self.detail = detail
        self.client_msg_ids = client_msg_ids
        self.outcomes = outcomes

    def __str__(self) -> str:
        return self.detail


class ServerError(ImrayError):
    """The server is broken or is no imray server; a retry does not help, a person must look.

    For sends, `client_msg_ids` are the messages whose outcome is unknown: keep the ids."""

    def __init__(self, detail: str, client_msg_ids: tuple[str, ...] = ()) -> None:
        super().__init__(detail, client_msg_ids)
        self.detail = detail
        self.client_msg_ids = client_msg_ids

    def __str__(self) -> str:
        return self.detail


def fresh(error: E) -> E:
    """The same error to be raised once more: one object that is raised again and again keeps every traceback."""
    return copy(error)
