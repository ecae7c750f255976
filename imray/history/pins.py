"""Pins: a long reader says which version of the table it reads, and who deletes leaves that alone.

A pin is a file `pins/<reader>-<counter>.json`. Its reader puts one with a higher counter now and then; who deletes
times that by its own monotonic clock, so that no two clocks are compared. A reader that died leaves a pin that is not
renewed and expires. Names are flat: a folder for each reader would stay behind.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Callable
from types import TracebackType

import msgspec

from imray.core.errors import StorageError
from imray.history.layout import pin_prefix
from imray.log.store import Store

log = logging.getLogger("imray.pins")

_RENEWALS = 4
"""In the time after which a pin expires: three may be late."""
_LISTINGS_MAX = 3
_ALL_VERSIONS = -1
"""The version of a pin that cannot be read: it holds everything until it expires."""
_NAME = re.compile(r"([0-9a-f]+)-(\d{10})\.json")


class PinNote(msgspec.Struct, frozen=True):
    """The content of a pin."""

    version: int
    """Of the table: nothing goes that is a part of it, or of the log above it."""


class Pin:
    """Holds what a version of the table consists of, and what of the log is merged after it. A context manager.

    Put it within `settings.read_s_max` of reading the snapshot; until then that time protects the reader. A thread of
    its own renews it, since a query may compute for minutes."""

    def __init__(self, store: Store, version: int, pin_s_max: float) -> None:
        self._store = store
        self._version = version
        self._renew_s = pin_s_max / _RENEWALS
        self._reader = secrets.token_hex(8)
        self._counter = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="pin", daemon=True)
        self.lost = False
        """It expired before it was renewed: what it held may be gone, and its reader must start anew."""

    def __enter__(self) -> Pin:
        self._put()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self._store.delete(self._name(self._counter))
        except StorageError as e:
            log.warning("a pin stays until it expires: %s", e)

    def renew(self) -> None:
        """Put it anew under a higher counter. StorageError where the store refuses: the one before stands."""
        before = self._name(self._counter)
        self.lost = self.lost or not self._store.exists(before)
        self._counter += 1
        try:
            self._put()
        except StorageError:
            self._counter -= 1
            raise
        self._store.delete(before)

    def _put(self) -> None:
        self._store.put_if_absent(self._name(self._counter), [msgspec.json.encode(PinNote(self._version))])

    def _name(self, counter: int) -> str:
        return f"{pin_prefix()}{self._reader}-{counter:010d}.json"

    def _keep(self) -> None:
        while not self._ended.wait(self._renew_s):
            try:
                self.renew()
            except StorageError as e:
                log.warning("a pin is not renewed: %s", e)


class PinWatch:
    """The side of who deletes: which pins live. Not thread-safe."""

    def __init__(self, store: Store, pin_s_max: float, monotonic_s: Callable[[], float]) -> None:
        self._store = store
        self._pin_s_max = pin_s_max
        self._monotonic_s = monotonic_s
        self._seen: dict[str, tuple[int, float, int]] = {}
        """By reader: its highest counter, when that was first seen, and the version."""

    def lowest(self) -> int | None:
        """The lowest version that a living pin names; None: there is none. Expired pins are removed."""
        listed = self._listed()
        now = self._monotonic_s()
        alive: dict[str, tuple[int, float, int]] = {}
        for reader, counters in listed.items():
            newest = max(counters)
            seen = self._seen.get(reader)
            if seen is None or seen[0] != newest:
                seen = (newest, now, self._version(counters[newest]))
            if now - seen[1] > self._pin_s_max:
                log.warning("the pin of reader %s expired: it was not renewed for %.0f s", reader, self._pin_s_max)
                for name in counters.values():
                    self._store.delete(name)
            else:
                alive[reader] = seen
        self._seen = alive
        return min((version for _, _, version in alive.values()), default=None)

    def _listed(self) -> dict[str, dict[int, str]]:
        """By reader, and by counter: the names of pins."""
        found: dict[str, dict[int, str]] = {}
        for name in self._store.list(pin_prefix()):
            matched = _NAME.fullmatch(name.removeprefix(pin_prefix()))
            if matched is not None:
                found.setdefault(matched[1], {})[int(matched[2])] = name
        return found

    def _version(self, name: str) -> int:
        for _ in range(_LISTINGS_MAX):
            data = self._store.get(name)
            if data is not None:
                try:
                    return msgspec.json.decode(data, type=PinNote).version
                except msgspec.DecodeError:
                    return _ALL_VERSIONS
            # renewed or let go meanwhile: all pins of a reader name one version
            reader = name.rpartition("-")[0]
            left = [other for other in self._store.list(pin_prefix()) if other.startswith(f"{reader}-")]
            if not left:
                break
            name = left[-1]
        return _ALL_VERSIONS
