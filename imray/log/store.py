"""Where files live: a few verbs, and the local POSIX disk that does them durably.

Owns names, durability and put-if-absent. Knows nothing of what is in a file.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import secrets
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from imray.core.errors import StorageError
from imray.log.posix import write_parts

_PROCESS = f"{os.getpid()}-{secrets.token_hex(4)}"


class Store(Protocol):
    """Verbs over immutable files; names are relative paths with '/'.

    Every verb raises StorageError where the store fails; after a failed put its outcome is unknown."""

    writer_id: str
    """The same for all writers of one process, and for no others: writers of one process follow one another."""
    puts_at_once: int
    """How many segments of one log may be on their way at once. One where puts share a disk; more pay where each takes
    20 to 200 ms, however many there are."""

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        """True: the file is durable under a name that nobody had. False: the name is taken (nothing changed)."""

    def get(self, name: str) -> bytes | None:
        """The whole file; None where there is none."""

    def get_range(self, name: str, start: int, size: int) -> bytes | None:
        """`size` bytes from `start` on, fewer at the end; with `start` below 0 the last `-start` bytes, or all of
        a smaller file. None where there is no file."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def sync(self, prefix: str) -> None:
        """Make the names that start with `prefix` (a folder) durable, whoever put them: a writer may have died between
        publishing a file and that."""

    def sweep(self) -> int:
        """Remove what puts of dead writers left behind, where the store has such: how many."""

    def map(self, name: str) -> memoryview | None:
        """The whole file as memory that the system may take back and read again, where the store has such; for files
        that are large and used here and there."""

    def list(self, prefix: str, after: str = "") -> list[str]:
        """The names that start with `prefix` (a folder, ending in '/') and sort above `after`, sorted."""

    def delete(self, name: str) -> None:
        """Remove a file; no error where there is none."""


_READ_BYTES = 1 << 20
_LEFT_OVER_S = 3600.0
"""A put takes milliseconds; over a store that hangs it may take minutes."""


class LocalStore:
    """A folder on a POSIX file system: temporary file, fsync, link(2) to the name, fsync of the folder.

    link(2) fails with EEXIST where the name is taken, and the file has all its bytes on disk before it has a name:
    a published file is never torn. Needs hard links and an fsync that reaches the disk."""

    writer_id = _PROCESS
    puts_at_once = 1

    def __init__(self, root: Path | str, put_delay_s: float = 0.0) -> None:
        """`put_delay_s` makes every put take longer: to see how a system would do over a slower store."""
        self.root = Path(root)
        self._put_delay_s = put_delay_s
        # strings, in all that a put does: pathlib took 90 of its 270 us of CPU
        self._root = str(self.root)
        self._tmp = f"{self._root}/tmp"
        self._folders: dict[str, int] = {}
        """Folders known to be there, with a descriptor to sync each: opening costs a tenth of a small commit."""
        weakref.finalize(self, _close_all, self._folders)
        self._puts = itertools.count()

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        path = f"{self._root}/{name}"
        folder = path.rpartition("/")[0]
        temporary = f"{self._tmp}/{_PROCESS}-{id(self):x}-{next(self._puts)}"
        try:
            self._make_folder(folder)
            self._make_folder(self._tmp)
            try:
                self._write(temporary, parts)
                if self._put_delay_s:
                    time.sleep(self._put_delay_s)
                if not self._link(temporary, path):
                    return False
                self._sync_folder(folder)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
        except OSError as e:
            raise StorageError(f"put {name}: {e.strerror or e} (errno {e.errno}): {self._advice(e)}") from e
        return True

    def sweep(self, older_than_s: float = _LEFT_OVER_S) -> int:
        """Remove files without a name that writers left who were killed: how many. Whoever is still writing one of them
        after so long finds out when it publishes it, and stops."""
        removed = 0
        before = time.time() - older_than_s
        try:
            with os.scandir(self.root / "tmp") as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
                        if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before:
                            os.unlink(entry.path)
                            removed += 1
        except FileNotFoundError:
            return 0
        except OSError as e:
            raise StorageError(f"sweep tmp: {e.strerror or e} (errno {e.errno})") from e
        return removed

    def _write(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640)
        try:
            write_parts(fd, parts)
            self._sync_file(fd)
        finally:
            os.close(fd)

    def _sync_file(self, fd: int) -> None:
        os.fsync(fd)

    def _link(self, temporary: str, path: str) -> bool:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True

    def _sync_folder(self, folder: str) -> None:
        os.fsync(self._folders[folder])

    def _make_folder(self, folder: str) -> None:
        """A folder whose own name is durable up to the root: a file's fsync does not cover its ancestors."""
        if folder in self._folders:
            return
        parent = os.path.dirname(folder) or "."
        inside = folder.startswith(f"{self._root}/")
        if inside or not os.path.isdir(folder):
            # also where it is there: whoever made it may have died before its name was durable
            self._make_folder(parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            self._sync_folder(parent)
        self._folders[folder] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def get(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StorageError(f"get {name}: {e.strerror or e} (errno {e.errno})") from e

    def get_range(self, name: str, start: int, size: int) -> bytes | None:
        try:
            fd = os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if start < 0:
                    end = os.fstat(fd).st_size
                    start = max(0, end + start)
                    size = end - start
                return os.pread(fd, size, start)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StorageError(f"get {name}: {e.strerror or e} (errno {e.errno})") from e

    def exists(self, name: str) -> bool:
        try:
            os.stat(self.root / name)
        except FileNotFoundError:
            return False
        except OSError as e:
            raise StorageError(f"stat {name}: {e.strerror or e} (errno {e.errno})") from e
        return True

    def sync(self, prefix: str) -> None:
        folder = f"{self._root}/{prefix}".rstrip("/")
        if not os.path.isdir(folder):
            return
        try:
            self._make_folder(folder)
            self._sync_folder(folder)
        except OSError as e:
            raise StorageError(f"sync {prefix}: {e.strerror or e} (errno {e.errno})") from e

    def map(self, name: str) -> memoryview | None:
        try:
            with (self.root / name).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                # a sector that cannot be read is an error here, and would be a signal that kills under the map
                scrap = bytearray(min(size, _READ_BYTES))
                while file.readinto(scrap):
                    pass
                return memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) if size else b"")
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StorageError(f"map {name}: {e.strerror or e} (errno {e.errno})") from e

    def list(self, prefix: str, after: str = "") -> list[str]:
        try:
            with os.scandir(self.root / prefix) as entries:
                return sorted(n for e in entries if (n := prefix + e.name) > after)
        except FileNotFoundError:
            return []
        except OSError as e:
            raise StorageError(f"list {prefix}: {e.strerror or e} (errno {e.errno})") from e

    def delete(self, name: str) -> None:
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"delete {name}: {e.strerror or e} (errno {e.errno})") from e

    def _advice(self, e: OSError) -> str:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            return "the writer stops and a new one reads what landed"
        what = "the disk is full: free space"
        with contextlib.suppress(OSError):
            room = os.statvfs(self.root)
            if room.f_files and not room.f_favail and room.f_bavail:
                what = "the disk has no inodes left, though it has bytes: remove files, however small"
        return f"{what}; nothing acked is lost, and writing goes on by itself when there is room"


def _close_all(folders: dict[str, int]) -> None:
    for fd in folders.values():
        os.close(fd)
