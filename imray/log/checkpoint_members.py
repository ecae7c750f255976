"""Members and cursors as columns of a checkpoint, beside (conv_id, head). Who writes it: `imray.log.checkpoint`.

Each conversation's row has its lists; the users that they name by index stand in the first row, all of them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from imray.core.errors import InvalidError
from imray.core.member_state import MembersColumns, MemberState
from imray.core.user_lists import Values
from imray.kernels.arrays import I32, I64

_SCHEMA = pa.schema(
    [
        pa.field("member_flags", pa.int8()),
        pa.field("member_version", pa.int64()),
        pa.field("members", pa.list_(pa.int32())),
        pa.field("member_roles", pa.list_(pa.int8())),
        pa.field("readers", pa.list_(pa.int32())),
        pa.field("reader_seqs", pa.list_(pa.int64())),
        pa.field("users", pa.list_(pa.string())),
    ]
)


def member_columns(members: MembersColumns) -> dict[str, pa.Array]:
    """The columns of a snapshot, one row a conversation."""
    users = len(members.ends) - 1
    text = [None, pa.py_buffer(members.ends.astype(np.int64)), pa.py_buffer(members.text)]
    names = pa.Array.from_buffers(pa.large_string(), users, text).cast(pa.string())
    in_first_row = np.full(len(members.flags) + 1, users, np.int32)
    in_first_row[0] = 0
    columns = [
        pa.array(members.flags),
        pa.array(members.versions),
        *_lists(*members.roles),
        *_lists(*members.cursors),
        pa.ListArray.from_arrays(pa.array(in_first_row), names),
    ]
    return dict(zip(_SCHEMA.names, columns, strict=True))


def _lists(offsets: I64, users: I32, values: Values) -> tuple[pa.Array, pa.Array]:
    at = pa.array(offsets.astype(np.int32))
    return pa.ListArray.from_arrays(at, pa.array(users)), pa.ListArray.from_arrays(at, pa.array(values))


def restored_members(table: pa.Table, users: int) -> MemberState:
    """The inverse of `member_columns`. InvalidError where the columns are not there, or do not fit together."""
    if not table.num_rows or any(name not in table.column_names for name in _SCHEMA.names):
        raise InvalidError("it has no columns of members")
    columns = {f.name: table.column(f.name).chunk(0) for f in _SCHEMA}
    if any(not columns[f.name].type.equals(f.type) for f in _SCHEMA):
        raise InvalidError("a column of members has another type")
    names: list[str] = columns["users"].flatten().to_pylist()
    if len(names) != users:
        raise InvalidError(f"it says {users} users and has {len(names)}")
    return MemberState.restored(
        users=names,
        flags=columns["member_flags"].to_numpy(),
        versions=columns["member_version"].to_numpy(),
        roles=_from_lists(columns["members"], columns["member_roles"]),
        cursors=_from_lists(columns["readers"], columns["reader_seqs"]),
    )


def _from_lists(users: pa.Array, values: pa.Array) -> tuple[I64, I32, Values]:
    offsets = users.offsets.to_numpy().astype(np.int64)
    if not np.array_equal(offsets, values.offsets.to_numpy()):
        raise InvalidError("its lists of users and of their values do not fit together")
    return offsets - offsets[0], users.flatten().to_numpy(), values.flatten().to_numpy()
