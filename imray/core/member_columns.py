"""Members and cursors of some conversations as columns: what a checkpoint takes of them."""

from __future__ import annotations

from dataclasses import dataclass

from imray.core.user_lists import Values
from imray.kernels.arrays import I8, I32, I64, U8


@dataclass(frozen=True)
class MembersColumns:
    """One row a conversation. Lists are one after the other: offsets, users, values."""

    text: U8
    ends: I64
    """Users' names: text[ends[i] : ends[i + 1]]."""
    flags: I8
    versions: I64
    roles: tuple[I64, I32, Values]
    cursors: tuple[I64, I32, Values]
