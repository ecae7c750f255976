"""A footer that is cut describes each row group as pyarrow reads it from the whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imray.core.errors import InvalidError
from imray.history.parquet_footer import read_footer
from imray.history.run_index import META_KEY
from imray.settings import Settings
from tests.support.history_rows import HistoryRow, UnsyncedStore, put_rows


@pytest.fixture
def footer(tmp_path: Path) -> bytes:
    """Of a file of more than 127 groups: sizes of two bytes, in lists of both kinds."""
    rows = [HistoryRow(f"c{n // 9}", n, segment=n) for n in range(140)]
    store = UnsyncedStore(tmp_path)
    (file,) = put_rows(store, rows, Settings(run_group_bytes=1)).files
    data = (store.root / file.name).read_bytes()
    return data[-8 - int.from_bytes(data[-8:-4], "little") : -8]


def _whole(footer: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(b"".join([b"PAR1", footer, len(footer).to_bytes(4, "little"), b"PAR1"])))


def test_each_group_is_described_as_in_the_whole(footer: bytes) -> None:
    whole = _whole(footer)
    cut = read_footer(footer)
    assert (cut.rows, cut.groups) == (whole.num_rows, whole.num_row_groups)
    assert cut.groups > 127
    assert cut.pairs[META_KEY] == whole.metadata[META_KEY]
    for groups in (range(0, 1), range(1, 3), range(cut.groups - 16, cut.groups), range(cut.groups)):
        part = cut.metadata(groups)
        assert part.schema.equals(whole.schema)
        assert part.num_row_groups == len(groups)
        for i, group in enumerate(groups):
            assert part.row_group(i).to_dict() == whole.row_group(group).to_dict()


def test_what_is_no_footer_is_refused(footer: bytes) -> None:
    """It does not come from a file that verifies; still nothing is read past its end."""
    for size in [*range(0, 300), *range(300, len(footer) - 400, 997)]:
        with pytest.raises(InvalidError):
            read_footer(footer[:size])
    for head in (b"\x00", b"\x05", b"\x1d", b"\xff" * 64):
        with pytest.raises(InvalidError):
            read_footer(head)
