"""The Python client: send, read and manage members over HTTP, follow conversations in order by push.

Ids are made once for each message and kept over every retry; what reaches the caller is a number or an error that
says what to do.
"""

from imray.client.call import RetryPolicy
from imray.client.errors import AuthError, ConflictError, ServerError, UnknownOutcomeError
from imray.client.follower import AsyncFollower
from imray.client.http import AsyncClient
from imray.client.http_sync import Client
from imray.client.live import AsyncLive
from imray.client.live_sync import Follower, Live
from imray.client.models import (
    Ack,
    Creation,
    Head,
    HistoryPage,
    Hole,
    LiveSignal,
    Member,
    MemberPage,
    MemberRole,
    MembersNow,
    Message,
    Outcome,
    Outgoing,
    Ready,
    SendResult,
    Unread,
    Version,
    new_client_msg_id,
)
from imray.client.outbox import AsyncOutbox, Outbox, OutboxAnswer
from imray.client.session import ConversationFollower
from imray.core.errors import BusyError, ImrayError, InvalidError, UnavailableError

__all__ = [
    "Ack",
    "AsyncClient",
    "AsyncFollower",
    "AsyncLive",
    "AsyncOutbox",
    "AuthError",
    "BusyError",
    "Client",
    "ConflictError",
    "ConversationFollower",
    "Creation",
    "Follower",
    "Head",
    "HistoryPage",
    "Hole",
    "ImrayError",
    "InvalidError",
    "Live",
    "LiveSignal",
    "Member",
    "MemberPage",
    "MemberRole",
    "MembersNow",
    "Message",
    "Outbox",
    "OutboxAnswer",
    "Outcome",
    "Outgoing",
    "Ready",
    "RetryPolicy",
    "SendResult",
    "ServerError",
    "UnavailableError",
    "UnknownOutcomeError",
    "Unread",
    "Version",
    "new_client_msg_id",
]
