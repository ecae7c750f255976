"""The conversations of a delivery session: which are followed, which subscribe has no answer yet, what is due when.

Owns the three tables and that they agree. Pure. Does not own what is done about any of it (`imray.core.delivery`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

from imray.core.delivery_conversation import FollowedConversation

T = TypeVar("T")
_DOUBTS_MAX = 2
"""Once something else may have been at fault."""


class FollowedBook(Generic[T]):
    """By conversation, by ref, and by time."""

    def __init__(self) -> None:
        self._followed: dict[str, FollowedConversation[T]] = {}
        self._asked: dict[int, FollowedConversation[T]] = {}
        self._dues: list[tuple[int, str]] = []
        """A heap of moments; one that its conversation does not name any more counts for nothing."""

    def __len__(self) -> int:
        return len(self._followed)

    def __iter__(self) -> Iterator[FollowedConversation[T]]:
        return iter(self._followed.values())

    def get(self, conv_id: str) -> FollowedConversation[T] | None:
        """A conversation, where it is followed."""
        return self._followed.get(conv_id)

    def put(self, followed: FollowedConversation[T]) -> None:
        """Follow it, in place of what was followed of the same conversation."""
        self.remove(followed.conv_id)
        self._followed[followed.conv_id] = followed

    def remove(self, conv_id: str) -> FollowedConversation[T] | None:
        """Follow it no more."""
        followed = self._followed.pop(conv_id, None)
        if followed is not None:
            self.forget_answer(followed)
        return followed

    def ask(self, followed: FollowedConversation[T], ref: int) -> None:
        """A subscribe goes out: the answer to an earlier one matters no more."""
        self.forget_answer(followed)
        followed.ref = ref
        self._asked[ref] = followed

    def answered(self, ref: int | None) -> FollowedConversation[T] | None:
        """Whose subscribe has its answer now; None: nobody waits for that one."""
        followed = self._asked.pop(ref, None) if ref is not None else None
        if followed is not None:
            followed.ref = None
            followed.doubts = 0
        return followed

    @property
    def is_asking(self) -> bool:
        """Whether a subscribe has no answer yet."""
        return bool(self._asked)

    def doubt(self) -> list[FollowedConversation[T]]:
        """The server could not read something, and a subscribe that has no answer may be that. Those that were out
        twice, with no answer in between."""
        for followed in self._asked.values():
            followed.doubts += 1
        return [followed for followed in self._asked.values() if followed.doubts >= _DOUBTS_MAX]

    def forget_answer(self, followed: FollowedConversation[T]) -> None:
        """The answer to its subscribe, where one is out, matters no more."""
        if followed.ref is not None:
            self._asked.pop(followed.ref, None)
            followed.ref = None

    @property
    def due_at_ms(self) -> int | None:
        """When the first one is due."""
        while self._dues and not self._is_due(*self._dues[0]):
            heapq.heappop(self._dues)
        return self._dues[0][0] if self._dues else None

    def next_due(self, now_ms: int) -> FollowedConversation[T] | None:
        """One that is due, which it is no more afterwards."""
        at_ms = self.due_at_ms
        if at_ms is None or at_ms > now_ms:
            return None
        followed = self._followed[heapq.heappop(self._dues)[1]]
        followed.due_ms = None
        return followed

    def set_due(self, followed: FollowedConversation[T], at_ms: int | None) -> None:
        """When something is to be done about it; in place of what was said before."""
        followed.due_ms = at_ms
        if at_ms is not None:
            heapq.heappush(self._dues, (at_ms, followed.conv_id))
        if len(self._dues) > 2 * len(self._followed) + 16:  # most are out of date
            self._dues = [(f.due_ms, f.conv_id) for f in self if f.due_ms is not None]
            heapq.heapify(self._dues)

    def disconnect(self) -> None:
        """The connection is gone, and all that was asked on it."""
        self._asked.clear()
        self._dues.clear()
        for followed in self:
            followed.disconnect()

    def clear(self) -> None:
        """Nothing is followed any more."""
        self._followed.clear()
        self._asked.clear()
        self._dues.clear()

    def _is_due(self, at_ms: int, conv_id: str) -> bool:
        followed = self._followed.get(conv_id)
        return followed is not None and followed.due_ms == at_ms
