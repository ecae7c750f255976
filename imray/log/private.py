"""What only we may write: a data folder, its folder `run/`, and the keys and notes in that.

Whoever can write to them decides which key signs, which process `imray down` ends and which file a log overwrites. So
nothing of another user's is believed, no link is followed, and a name is looked up in the folder that was checked (by
its descriptor), not along a path that may have changed since. Knows nothing of what the files say.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shlex
import stat
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from imray.core.errors import InvalidError

RUN = "run"
_OF_THE_DATA = ("imray.json", "wal", "checkpoint", "sealed", "history", "merged", "pins", "verified", "tmp")
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_DATA_MODE = 0o750
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_ANYBODY = range(2**32)
_OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# not blocking: a pipe in the place of a file would hold us until somebody writes to it
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class PrivateFolder:
    """An open folder that was found to be ours. Its names are plain, without '/'."""

    def __init__(self, path: Path, fd: int, group_may_write: bool = False) -> None:
        self.path = path
        self._fd = fd
        self._refused_bits = stat.S_IWOTH if group_may_write else _WRITABLE_BY_OTHERS

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, name: str, secret: bool = False) -> bytes | None:
        """The content of a file of ours; None where there is none. A `secret` must not be readable by others either:
        whoever made it so may have shown it."""
        path = self.path / name
        try:
            fd = os.open(name, _OPEN_FILE, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as e:
            _check(path, os.stat(name, dir_fd=self._fd, follow_symlinks=False), stat.S_IFREG)
            raise InvalidError(f"{path} cannot be read: {e.strerror}") from e
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            _check(path, found, stat.S_IFREG, self._refused_bits)
            if secret and found.st_mode & _OPEN_TO_OTHERS:
                what = f"{path} is a secret that others may read (mode {_mode(found)})"
                raise InvalidError(f"{what}: `rm {_quoted(path)}` has a new one made at the next `imray up`")
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Put a file in the place of what has the name; a reader sees the old or the new one, whole."""
        temporary = self._write_temporary(content)
        os.replace(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def secret(self, name: str, make: bool) -> bytes | None:
        """A secret; with `make` a random one where there is none. Of two that make it at once both get the same."""
        found = self.read(name, secret=True)
        if found is not None or not make:
            return found
        temporary = self._write_temporary(secrets.token_hex(32).encode())
        with suppress(FileExistsError):
            os.link(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
        os.unlink(temporary, dir_fd=self._fd)
        return self.read(name, secret=True)

    def new_file(self, name: str) -> int:
        """A descriptor to write a new, empty file with; what had the name before is not touched, only unnamed."""
        self.remove(name)
        return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE, dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Take a name away, whatever has it; no error where nothing has."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def tighten(self, name: str) -> None:
        """Close a file of ours to others, where it was left open for them to read; what they may have written is left
        for `read` to refuse."""
        try:
            fd = os.open(name, _OPEN_FILE, dir_fd=self._fd)
        except OSError:
            return  # nothing of ours; whoever reads it finds out what it is
        try:
            found = os.fstat(fd)
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
            if ours and not found.st_mode & self._refused_bits and found.st_mode & _OPEN_TO_OTHERS:
                os.fchmod(fd, _FILE_MODE)
        finally:
            os.close(fd)

    def _write_temporary(self, content: bytes) -> str:
        name = f"new-{os.getpid()}-{secrets.token_hex(4)}"
        with os.fdopen(self.new_file(name), "wb") as file:
            file.write(content)
        return name


def resolved(data: Path) -> Path:
    """The folder that a path means. A link on its last step is followed only if it is ours or root's."""
    with suppress(FileNotFoundError):
        found = os.lstat(data)
        if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.geteuid(), 0):
            raise InvalidError(f"{data} is a link of user {_name(found.st_uid)}: name the folder that you mean")
    return data.resolve()


def make_run(data: Path, shared: bool = False) -> PrivateFolder:
    """The folder `run/` of a data folder, open; both are made where they are not there.

    InvalidError, with the command that mends it, where anything of it is a link, another's, or writable by others.
    `shared`: the data folder is a volume whose owner and group are the operator's (Kubernetes gives a pod's group the
    right to write to all of it), so of it only `run/` must be ours, and that is closed to the group."""
    path = data / RUN
    _check_above(data)
    try:
        data.mkdir(mode=_DATA_MODE, parents=True, exist_ok=True)
        data_fd = _open_folder(data, None)
        try:
            _check_data(data, data_fd, shared)
            with suppress(FileExistsError):
                os.mkdir(RUN, _FOLDER_MODE, dir_fd=data_fd)
            folder = _open_run(path, data_fd, shared)
        finally:
            os.close(data_fd)
    except OSError as e:
        raise InvalidError(f"cannot make {path}: {e.strerror}; choose another folder with --data") from e
    # an earlier version left its log open to all, with a token in it; a volume may open all to its group
    folder.tighten("up.log")
    folder.tighten("up.json")
    return folder


def find_run(data: Path) -> PrivateFolder | None:
    """As `make_run`, for those that only look: None where there is none, and nothing is changed."""
    _check_above(data)
    try:
        data_fd = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fd = _open_folder(data / RUN, data_fd)
    except FileNotFoundError:
        return None
    finally:
        os.close(data_fd)
    return _checked(data / RUN, fd, _WRITABLE_BY_OTHERS)


def _check_above(data: Path) -> None:
    """That not everybody can put another folder in the data folder's place: all users may write to one above it only
    where they cannot rename what is not theirs.

    Who owns a folder above it is not looked at: root works in users' folders, in containers above all. See
    docs/security.md."""
    for folder in data.resolve().parents:
        try:
            found = os.stat(folder)
        except FileNotFoundError:
            continue  # it is made, and ours
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise InvalidError(
                f"{folder}, above the data folder, may be written to by all users: `chmod o-w {_quoted(folder)}`"
            )


def _open_run(path: Path, data_fd: int, shared: bool) -> PrivateFolder:
    fd = _open_folder(path, data_fd)
    folder = _checked(path, fd, stat.S_IWOTH if shared else _WRITABLE_BY_OTHERS, shared)
    if os.fstat(fd).st_mode & _OPEN_TO_OTHERS:
        os.fchmod(fd, _FOLDER_MODE)
    return folder


def _checked(path: Path, fd: int, refused_bits: int, group_may_write: bool = False) -> PrivateFolder:
    try:
        _check(path, os.fstat(fd), stat.S_IFDIR, refused_bits)
    except InvalidError:
        os.close(fd)
        raise
    return PrivateFolder(path, fd, group_may_write)


def _open_folder(path: Path, parent_fd: int | None) -> int:
    name = path.name if parent_fd is not None else str(path)
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=parent_fd)
    except FileNotFoundError:
        raise
    except OSError as e:
        _check(path, os.stat(name, dir_fd=parent_fd, follow_symlinks=False), stat.S_IFDIR)
        raise InvalidError(f"{path} cannot be opened: {e.strerror}") from e


def _check_data(data: Path, fd: int, shared: bool) -> None:
    """That nobody else can have put anything into a data folder, and none of its parts leads out of it."""
    refused = 0 if shared else _WRITABLE_BY_OTHERS
    owners = _ANYBODY if shared else (os.geteuid(), 0)
    _check(data, os.fstat(fd), stat.S_IFDIR, refused, owners)
    for name in _OF_THE_DATA:
        with suppress(FileNotFoundError):
            kind = stat.S_IFREG if name.endswith(".json") else stat.S_IFDIR
            _check(data / name, os.stat(name, dir_fd=fd, follow_symlinks=False), kind, refused, owners)


def _check(
    path: Path, found: os.stat_result, kind: int, refused_bits: int = 0, owners: Container[int] | None = None
) -> None:
    """InvalidError unless it is of the kind, belongs to one of the owners (None: us) and has none of the bits."""
    if stat.S_ISLNK(found.st_mode):
        raise InvalidError(f"{path} is a link, and may lead to what is another's: `rm {_quoted(path)}`")
    if stat.S_IFMT(found.st_mode) != kind:
        wanted = "folder" if kind == stat.S_IFDIR else "plain file"
        raise InvalidError(f"{path} is no {wanted}: `mv {_quoted(path)} {_quoted(path)}.old`")
    us = os.geteuid()
    if found.st_uid not in (owners or (us,)):
        raise InvalidError(
            f"{path} belongs to user {_name(found.st_uid)}, not to {_name(us)}: run imray as that user or, "
            f"if you trust all that is in it, `chown -R {_name(us)} {_quoted(path)}`"
        )
    if found.st_mode & refused_bits:
        raise InvalidError(
            f"{path} may be written to by other users (mode {_mode(found)}): look for what is not yours in it, "
            f"then `chmod -R go-w {_quoted(path)}`"
        )


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)  # of another machine, or removed


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
