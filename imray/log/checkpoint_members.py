"""Members and cursors as columns of a checkpoint, beside (conv_id, head). Who writes it: `imray.log.checkpoint`.

Each conversation's row has its lists; the users that they name by index stand in the first row, all of them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from imray.core.errors import InvalidError
from imray.core.member_columns import MembersColumns
from imray.core.member_state import MemberState
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


def member_columns(members: MembersColumns, at: I64, rows: int) -> dict[str, pa.Array]:
    """The columns of a file with so many rows: where a snapshot's conversations stand in them, null elsewhere."""
    users = len(members.ends) - 1
    text = [None, pa.py_buffer(members.ends.astype(np.int64)), pa.py_buffer(members.text)]
    names = pa.Array.from_buffers(pa.large_string(), users, text).cast(pa.string())
    in_first_row = np.full(rows + 1, users, np.int32)
    in_first_row[0] = 0
    columns = [
        pa.array(members.flags),
        pa.array(members.versions),
        *_lists(*members.roles),
        *_lists(*members.cursors),
    ]
    if len(at) != rows:
        which = np.full(rows, -1)
        which[at] = np.arange(len(at))
        indices = pa.array(which, mask=which < 0)
        columns = [column.take(indices) for column in columns]
    columns.append(pa.ListArray.from_arrays(pa.array(in_first_row), names))
    return dict(zip(_SCHEMA.names, columns, strict=True))


def _lists(offsets: I64, users: I32, values: Values) -> tuple[pa.Array, pa.Array]:
    at = pa.array(offsets.astype(np.int32))
    return pa.ListArray.from_arrays(at, pa.array(users)), pa.ListArray.from_arrays(at, pa.array(values))


def restore_members(members: MemberState, table: pa.Table, conversations: I64, users: int) -> None:
    """Put the columns of a file, whose rows are of these conversations, over what is there: `users` there are then.

    InvalidError where the columns are not there, or do not fit together."""
    if not any(name in table.column_names for name in _SCHEMA.names):
        if users != members.users.count:
            raise InvalidError("it has no columns of members")
        return
    if any(name not in table.column_names for name in _SCHEMA.names):
        raise InvalidError("it has some columns of members, and lacks others")
    columns = {f.name: table.column(f.name).chunk(0) for f in _SCHEMA}
    if any(not columns[f.name].type.equals(f.type) for f in _SCHEMA):
        raise InvalidError("a column of members has another type")
    names: list[str] = columns["users"].flatten().to_pylist()
    said = columns["member_flags"].is_valid().to_numpy(zero_copy_only=False)
    if not said.all():
        columns = {name: column.filter(pa.array(said)) for name, column in columns.items()}
        conversations = conversations[said]
    none = np.empty(0, np.uint8)
    found = MembersColumns(
        text=none,
        ends=np.zeros(1, np.int64),
        flags=columns["member_flags"].to_numpy(),
        versions=columns["member_version"].to_numpy(),
        roles=_from_lists(columns["members"], columns["member_roles"]),
        cursors=_from_lists(columns["readers"], columns["reader_seqs"]),
    )
    members.restore(names, conversations, found)
    if members.users.count != users:
        raise InvalidError(f"it says {users} users, and there are {members.users.count}")


def _from_lists(users: pa.Array, values: pa.Array) -> tuple[I64, I32, Values]:
    offsets = users.offsets.to_numpy().astype(np.int64)
    if not np.array_equal(offsets - offsets[0], values.offsets.to_numpy() - values.offsets[0].as_py()):
        raise InvalidError("its lists of users and of their values do not fit together")
    return offsets - offsets[0], users.flatten().to_numpy(), values.flatten().to_numpy()
