"""Reading derived files: what is missing, cannot be read for good, or does not verify is a DerivedError."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from imray.core.errors import CorruptError, DerivedError, StorageError

T = TypeVar("T")


def read_derived(read: Callable[[], T | None], name: str) -> T:
    """What `read` gets of a file. DerivedError: it is not there, or on a sector that cannot be read. StorageError: the
    store fails, and may not the next time."""
    try:
        data = read()
    except StorageError as e:
        if isinstance(e.__cause__, OSError) and e.__cause__.errno == errno.EIO:
            raise DerivedError(name, f"it cannot be read: {e}") from e  # a bad sector stays bad
        raise
    if data is None:
        raise DerivedError(name, "a checkpoint names it, but it is not there")
    return data


def why(error: Exception) -> str:
    """What is wrong with a derived file, without the advice that damage to the log needs."""
    return f"{error.where}, {error.check}" if isinstance(error, CorruptError) else str(error)
