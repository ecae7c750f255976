"""What can be called, and what a server sends unasked. The numbers stand on the wire: none is ever given anew."""

from __future__ import annotations

from enum import IntEnum


class Method(IntEnum):
    """What a frame is for. Below 64: calls. From 64 on: what a server sends unasked."""

    APPEND = 1
    """A batch as an Arrow IPC stream; Appended or a Refusal."""
    LOCATE = 2
    """Where numbers of a conversation are; Located or a Refusal."""
    MEND = 3
    """Look at a derived file, and make it anew if it is damaged; a Refusal or None."""
    MAKE_HOT = 4
    """Turn a conversation hot, or cold (0 partitions); a Refusal or None."""
    REGISTER = 5
    """A partition's new writer has fenced its log; a bool or a Refusal."""
    ASK = 6
    """A partition asks for numbers; Granted, Declined or a Refusal."""
    REPORT = 7
    """A partition's segments are durable; a Refusal or None."""
    STATUS = 8
    """Figures for operators."""
    READ_HISTORY = 9
    """A page of history."""
    SUBSCRIBE = 10
    """From now on tell of these conversations, by PUBLISH; Subscribed or a Refusal."""
    CHANGE_MEMBERS = 11
    """Create a conversation, add or remove members; Changed or a Refusal."""
    ROLES = 12
    """Which roles some users have; Roles or a Refusal."""
    MARK_READ = 13
    """A user has read up to a number (0: how far it has); Cursor or a Refusal."""
    LIST_MEMBERS = 14
    """A page of a conversation's members."""
    SIGNAL = 15
    """Tell who listens now of something ephemeral; a Refusal or None."""

    PUBLISH = 64
    """What became durable."""
    SIGNALLED = 65
    """A signal."""
