"""Which conversations a partition says senders of, when it asks for numbers: those whose home shard wanted them once.

Owns that memory. Does not own who may send (`imray.core.member_state`): only the home shard knows.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pyarrow as pa

from imray.core.columns import Rows
from imray.log.rows import senders_of

_NAMES_MAX = 10_000
"""Far more than a home shard has hot conversations; what is forgotten is told again."""


class Judged:
    """Conversations that have members, as far as one incarnation of a partition has heard."""

    def __init__(self) -> None:
        self._names: set[bytes] = set()

    def add(self, rows: Rows) -> None:
        """Their home shard wants the senders of some rows."""
        if len(self._names) >= _NAMES_MAX:
            self._names.clear()
        self._names.update(_names_of(rows))

    def with_senders(self, rows: Rows, table: pa.Table) -> Rows:
        """The rows as they are asked for; `table` is what they were gathered from."""
        if not self._names or self._names.isdisjoint(_names_of(rows)):
            return rows
        return replace(rows, senders=senders_of(table))


def _names_of(rows: Rows) -> list[bytes]:
    text = rows.names_data.tobytes()
    ends = rows.names_offsets.tolist()
    return [text[a:b] for a, b in pairwise(ends)]
