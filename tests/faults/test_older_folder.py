"""A folder that version 0.1.0 wrote: opened, its old ids answered, its derived files made anew where they are damaged.

`tests/data/folder-0.1.0.zip` has one shard: `room`, hot with two partitions, and `den`; four sealed intervals and two
checkpoints; ids are the numbers 0 to 26 and 0 to 5."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from imray.core.replies import Refusal
from tests.hot.test_group import _hot, _m, _rows, _stable
from tests.support.batches import Msg, msg_id
from tests.support.groups import Group
from tests.support.owners import until_async

_ARCHIVE = Path(__file__).parents[1] / "data/folder-0.1.0.zip"
_DAMAGED = ["nothing", "sealed/*/*.ids.*", "sealed/*/*.bloom.arrow", "checkpoint/*/*", "sealed/*/*"]


def _unpack(root: Path, damaged: str, gone: bool) -> None:
    with zipfile.ZipFile(_ARCHIVE) as archive:
        archive.extractall(root)
    for path in [p for p in root.glob(damaged) if not p.is_relative_to(root / "wal")]:
        path.unlink()
        if not gone:
            path.write_bytes(b"\xff\xff\xff\xff damaged")


@pytest.mark.parametrize("damaged", _DAMAGED)
@pytest.mark.parametrize("gone", [True, False])
async def test_old_ids_have_their_first_numbers(tmp_path: Path, damaged: str, gone: bool) -> None:
    _unpack(tmp_path, damaged, gone)
    room = [_m(n) for n in range(27)]
    async with Group(tmp_path, checkpoint_ids_max=4) as group:

        async def known() -> bool:
            answer = await group.try_send(0, *room)
            return not isinstance(answer, Refusal) and _rows(answer) == [("duplicate", n + 1) for n in range(27)]

        await until_async(known, "old ids have their first numbers")
        assert _rows(await group.send(0, _m(3, b"another payload"))) == [("conflict", 4)]
        den = [Msg("den", msg_id(n)) for n in range(6)]

        async def den_is_known() -> bool:
            answer = await group.try_send(0, *den)
            return not isinstance(answer, Refusal) and _rows(answer) == [("duplicate", n + 1) for n in range(6)]

        await until_async(den_is_known, "those of the other conversation, too, once their interval is made anew")
        await _hot(group, 2)
        seqs = [_rows(await group.send(n % 3, _m(n)))[0] for n in range(27, 60)]
        assert [status for status, _ in seqs] == ["new"] * 33
        assert await _stable(group, seqs[-1][1]) == seqs[-1][1]
    async with Group(tmp_path) as group:
        await until_async(known, "and after a restart, with its checkpoints")
        assert _rows(await group.send(0, *(_m(n) for n in range(27, 60)))) == [("duplicate", seq) for _, seq in seqs]
