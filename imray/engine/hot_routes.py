"""Which way a send takes: to its home shard, or to a partition of a hot conversation.

Owns what a gateway knows of hot groups: it learns it from answers, and every way is safe, since the home shard takes
everything and the same ids go with each try. Does not own numbers or order.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence

from imray.core.replies import Appended, Refusal, Refused
from imray.core.routing import home_of, log_of, slot_for
from imray.engine.batcher import Batcher
from imray.engine.clients import PartitionClient, Unasked
from imray.rpc.directory import Directory
from imray.settings import Settings

_HOT_MAX = 100_000
"""Hot conversations that a gateway remembers."""


class HotRoutes:
    """The partitions as a gateway sees them. Belongs to one event loop."""

    def __init__(
        self, directory: Directory, settings: Settings, tls: ssl.SSLContext | None, unasked: Unasked | None = None
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._tls = tls
        self._unasked = unasked
        self.hot: dict[str, int] = {}
        """How many partitions each hot conversation has, as was last heard."""
        self._clients: dict[int, PartitionClient] = {}
        self._batchers: dict[int, Batcher] = {}
        self._paused: dict[int, float] = {}
        """Logs whose partition gave no answer or refuses to serve, and until when they are left out."""

    def log_for(self, home: int, conv_id: str, key: str) -> int:
        """The log for a send: the home shard's, or a partition's. `key` is the send's topic, else its sender."""
        partitions = self.hot.get(conv_id)
        if partitions is None:
            return home
        log = log_of(home, slot_for(key, partitions))
        until = self._paused.get(log)
        if until is not None:
            if time.monotonic() < until:
                return home
            del self._paused[log]
        return log

    def client(self, log: int) -> PartitionClient:
        """The client of a partition."""
        found = self._clients.get(log)
        if found is None:
            home, slot = home_of(log)
            found = PartitionClient(self._directory, home, slot, self._settings, self._tls, self._unasked)
            self._clients[log] = found
        return found

    def batcher(self, log: int) -> Batcher:
        """The queue of a partition."""
        found = self._batchers.get(log)
        if found is None:
            found = Batcher(self.client(log), self._settings, self._settings.partition_deadline_s)
            self._batchers[log] = found
        return found

    def is_final(self, log: int, answer: Appended | Refusal, conv_ids: Sequence[str]) -> bool:
        """Whether a partition's answer goes to the sender; if not, the home shard must be asked."""
        if isinstance(answer, Appended):
            self.update(answer, conv_ids)
            return True
        if answer.why is Refused.MOVED:
            for conv_id in conv_ids:
                self.hot.pop(conv_id, None)
            return False
        if answer.why is Refused.OLD_IDS:
            return False  # this request only
        if answer.why in (Refused.UNAVAILABLE, Refused.CORRUPT):
            # one that refuses to serve holds nobody up: the home shard takes everything
            self._paused[log] = time.monotonic() + self._settings.partition_pause_s
            return False
        return True

    def update(self, answer: Appended | Refusal, conv_ids: Sequence[str]) -> None:
        """Take over what an answer says of hot groups."""
        if not isinstance(answer, Appended) or (answer.hot is None and not self.hot):
            return
        hot = answer.hot or {}
        for conv_id in conv_ids:
            if conv_id not in hot:
                self.hot.pop(conv_id, None)
            elif conv_id in self.hot or len(self.hot) < _HOT_MAX:
                self.hot[conv_id] = hot[conv_id]

    def close(self) -> None:
        """Close the connections to the partitions."""
        for client in self._clients.values():
            client.close()
