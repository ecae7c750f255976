"""Which way a send takes: to its home shard, or to a sub-topic of a hot conversation.

Owns what a gateway knows of hot groups: it learns it from answers, and every way is safe, since the home shard takes
everything and the same ids go with each try. Does not own numbers or order.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from imray.cluster import names
from imray.cluster.batcher import Batcher
from imray.cluster.links import ActorClient
from imray.cluster.replies import Appended, Refusal, Refused
from imray.core.routing import home_of, log_of, slot_for
from imray.settings import Settings

_HOT_MAX = 100_000
"""Hot conversations that a gateway remembers."""


class Ways:
    """The sub-topics as a gateway sees them. Belongs to one event loop."""

    def __init__(self, namespace: str, settings: Settings) -> None:
        self._namespace, self._settings = namespace, settings
        self.hot: dict[str, int] = {}
        """How many sub-topics each hot conversation has, as was last heard."""
        self._topics: dict[int, Batcher] = {}
        self._paused: dict[int, float] = {}
        """Logs whose sub-topic gave no answer or refuses to serve, and until when they are left out."""

    def of(self, home: int, conv_id: str, key: str) -> int:
        """The log for a send: the home shard's, or a sub-topic's. `key` is the send's topic, else its sender."""
        topics = self.hot.get(conv_id)
        if topics is None:
            return home
        log = log_of(home, slot_for(key, topics))
        until = self._paused.get(log)
        if until is not None:
            if time.monotonic() < until:
                return home
            del self._paused[log]
        return log

    def topic(self, log: int) -> Batcher:
        """The queue of a sub-topic."""
        found = self._topics.get(log)
        if found is None:
            client = ActorClient(self._namespace, names.topic(*home_of(log)), self._settings)
            found = self._topics[log] = Batcher(client, self._settings, self._settings.topic_deadline_s)
        return found

    def arrived(self, log: int, answer: Appended | Refusal, conv_ids: Sequence[str]) -> bool:
        """Whether a sub-topic's answer is one; else the home shard must be asked."""
        if isinstance(answer, Appended):
            self.learn(answer, conv_ids)
            return True
        if answer.why is Refused.MOVED:
            for conv_id in conv_ids:
                self.hot.pop(conv_id, None)
            return False
        if answer.why in (Refused.UNAVAILABLE, Refused.CORRUPT):
            # one that refuses to serve holds nobody up: the home shard takes everything
            self._paused[log] = time.monotonic() + self._settings.topic_pause_s
            return False
        return True

    def learn(self, answer: Appended | Refusal, conv_ids: Sequence[str]) -> None:
        """Take over what an answer says of hot groups."""
        if not isinstance(answer, Appended) or (answer.hot is None and not self.hot):
            return
        hot = answer.hot or {}
        for conv_id in conv_ids:
            if conv_id not in hot:
                self.hot.pop(conv_id, None)
            elif conv_id in self.hot or len(self.hot) < _HOT_MAX:
                self.hot[conv_id] = hot[conv_id]
