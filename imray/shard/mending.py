"""Sealed intervals made anew: those that are damaged, and those of an earlier version. No ack waits for it.

Owns which are under way, and when one that could not be made anew is tried again. Does not own how one is made
(`imray.history.remake`), nor the list of intervals: that is the committer's, in the thread of the state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from imray.core.errors import CorruptError, DerivedError, StorageError, UnavailableError
from imray.history.remake import remake
from imray.log.sealed import SealedInterval, remove
from imray.settings import Settings
from imray.shard.committer import Committer
from imray.shard.runtime import Runtime, StateThread, Worker

log = logging.getLogger("imray.mending")

_AGAIN_S_MAX = 60.0


class Mender:
    """The intervals that one incarnation of a shard makes anew."""

    def __init__(
        self,
        committer: Committer,
        worker: Worker,
        state: StateThread,
        settings: Settings,
        runtime: Runtime,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_made: Callable[[], None],
    ) -> None:
        """`worker` makes them, one at a time; `spawn` begins a task and tells of its failure; `on_made`: one was made
        anew, and the next checkpoint is due."""
        self._committer = committer
        self._worker = worker
        self._on_state = state.run
        self._settings = settings
        self._now_s = runtime.monotonic_s
        self._spawn = spawn
        self._on_made = on_made
        self.tasks: dict[SealedInterval, asyncio.Task[None]] = {}
        """Those under way."""
        self._again_at: dict[SealedInterval, tuple[float, float]] = {}
        """Intervals that could not be made anew: when to try again, and how long after that."""
        self._ended = False

    def end(self) -> None:
        """Begin nothing more; what a thread is making is thrown away."""
        self._ended = True

    def look(self) -> None:
        """Begin to make anew what look-ups found damaged. What others took the place of meanwhile is nobody's any
        more."""
        damaged = list(self._committer.confirmer.damaged)
        for sealed in damaged:
            if self._is_there(sealed):
                self._start(sealed)
            else:
                self._forget(sealed)

    def look_again(self) -> None:
        """Begin with one that could not be made anew when the shard was opened, though no look-up asks for it: until
        then it is in no merge, and nothing that it covers may be deleted."""
        if self.tasks:
            return
        for sealed in self._committer.intervals:
            if sealed in self._again_at and self._start(sealed):
                return

    async def mend(self, file: str) -> bool:
        """Look at the interval of a derived file, and make it anew where one of its files is missing or damaged.

        However many ask, it is done once at a time, and seldom where it cannot be. False: the interval is in use as it
        was."""
        sealed = next((s for s in self._committer.intervals if file in s.interval.names), None)
        if sealed is None:
            return True  # another took its place meanwhile
        self._start(sealed)
        if sealed in self.tasks:
            await asyncio.wait([self.tasks[sealed]])
        return not self._is_there(sealed)

    def _is_there(self, sealed: SealedInterval) -> bool:
        return any(sealed is other for other in self._committer.intervals)

    def _start(self, sealed: SealedInterval) -> bool:
        at, _ = self._again_at.get(sealed, (0.0, 0.0))
        if self._ended or sealed in self.tasks or self._now_s() < at:
            return False
        task = self.tasks[sealed] = self._spawn(self._mend(sealed))
        task.add_done_callback(lambda _: self.tasks.pop(sealed, None))
        return True

    def _forget(self, sealed: SealedInterval) -> None:
        self._committer.confirmer.forget([sealed])
        self._again_at.pop(sealed, None)

    async def _mend(self, sealed: SealedInterval) -> None:
        committer = self._committer
        try:
            await self._worker.run(sealed.check)
            committer.confirmer.is_sound(sealed)
            self._again_at.pop(sealed, None)
            return
        except DerivedError as e:
            error = e
        except StorageError as e:
            log.warning("shard %d: %s", committer.shard, e)
            self._later(sealed)
            return
        if not self._is_there(sealed):
            self._forget(sealed)
            return
        try:
            made = await self._worker.run(self._remake, sealed)
        except UnavailableError:
            return
        except (CorruptError, DerivedError, StorageError) as e:
            self._failed(sealed, error, e)
            return
        # it was replaced by another one meanwhile, or is now: in either case it is nobody's any more
        is_used = await self.replace([sealed], made)
        self._forget(sealed)
        if is_used:
            committer.note(f"{error}; made anew from the log")
            committer.rewrite = True
            self._on_made()

    async def replace(self, parts: list[SealedInterval], whole: SealedInterval) -> bool:
        """One interval takes the place of others. False: they are not there any more, and it was removed."""
        is_used: bool = await self._on_state(self._committer.merged, parts, whole)
        if not is_used:
            await self._worker.run(remove, self._committer.store, whole.interval)
        return is_used

    def _failed(self, sealed: SealedInterval, damage: DerivedError, error: Exception) -> None:
        if not self._is_there(sealed):
            self._forget(sealed)
            return
        text = f"{damage}; it cannot be made anew: {error}"
        if text in self._committer.notes:
            log.warning("shard %d: %s", self._committer.shard, text)
        else:
            self._committer.note(text)
        if isinstance(error, CorruptError):
            self._committer.confirmer.lost.add(sealed)
        self._later(sealed)

    def _later(self, sealed: SealedInterval) -> None:
        _, delay_s = self._again_at.get(sealed, (0.0, self._settings.reopen_delay_s_max))
        self._again_at[sealed] = self._now_s() + delay_s, min(2 * delay_s, _AGAIN_S_MAX)

    def _remake(self, sealed: SealedInterval) -> SealedInterval:
        committer = self._committer
        args = (committer.store, committer.state.seed, sealed.interval, dict(committer.state.covered))
        made = remake(*args, is_wanted=lambda: not self._ended)
        if self._ended:
            remove(committer.store, made.interval)
        return made
