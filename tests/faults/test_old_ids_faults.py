"""Faults 5 and 24 on the runs of old ids: every change is found when it is met, and takes out the rows that need it."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imray.core.columns import RowStatus
from imray.core.errors import DerivedError, StorageError
from imray.core.sequencer import locate
from imray.log import sealed
from imray.log.confirm import Confirmer
from imray.log.sealed import SealedInterval, open_interval
from imray.shard.committer import Committer
from tests.support.batches import (
    SEED,
    Msg,
    answers_of,
    commit,
    merge_all,
    msg_id,
    open_committer,
    prepared,
    rows_of,
    seal,
)
from tests.support.merging import UnsyncedStore

_SENT = 1000


def _m(n: int) -> Msg:
    return Msg(f"c{n % 3}", msg_id(n))


def _filled(root: Path) -> tuple[Committer, SealedInterval]:
    """An interval of several blocks, opened as by a reader that has none of it in memory."""
    committer = open_committer(UnsyncedStore(root))
    commit(committer, [_m(n) for n in range(_SENT)])
    seal(committer)
    (interval,) = committer.intervals
    return committer, open_interval(committer.store, interval.interval)


def _looked_up(interval: SealedInterval, confirmer: Confirmer) -> list[int | None]:
    """The number that each old id is told; None: it must wait. AssertionError where one counts as new."""
    rows = rows_of([_m(n) for n in range(_SENT)])
    found = confirmer.look_up(rows, [(interval, np.arange(_SENT))])
    assert len(found) == _SENT, "an old id is never new"
    return [found[n].seq if found[n].status is None else None for n in range(_SENT)]


_RIGHT = [n // 3 + 1 for n in range(_SENT)]


def test_every_flip_is_found_when_it_is_met(tmp_path: Path) -> None:
    """In the index, all rows wait; in a block, those that may be in it. What needs no byte that changed is right."""
    committer, interval = _filled(tmp_path)
    path = tmp_path / interval.interval.run_name(0)
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    waits_for_all = waits_for_some = 0
    for at in [*range(0, len(data) - footer, 797), *range(len(data) - footer, len(data))]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        confirmer = Confirmer(committer.store, 0, SEED)
        told = _looked_up(open_interval(committer.store, interval.interval), confirmer)
        wrong = [n for n in range(_SENT) if told[n] not in (None, _RIGHT[n])]
        assert not wrong, f"byte {at}: {wrong}"
        waiting = told.count(None)
        waits_for_all += waiting == _SENT
        waits_for_some += 0 < waiting < _SENT
        # the first bytes are the file's kind, the digest of the whole is for who reads all of it
        is_needed = at >= 8 and not _is_whole_digest(data, at)
        assert bool(waiting) == is_needed, f"byte {at}: {waiting} rows wait"
        assert bool(confirmer.damaged) == is_needed
        with pytest.raises(DerivedError):
            open_interval(committer.store, interval.interval).check()
    assert waits_for_all > 100
    assert waits_for_some > 20


def _is_whole_digest(data: bytes, at: int) -> bool:
    begin = data.rindex(b"xxh3_128:") + len(b"xxh3_128:")
    return begin <= at < begin + 32


@pytest.mark.parametrize("length", [0, 3, 8, 100, -1, -30, -2000])
def test_a_run_that_is_cut_off(tmp_path: Path, length: int) -> None:
    committer, interval = _filled(tmp_path)
    path = tmp_path / interval.interval.run_name(0)
    path.write_bytes(path.read_bytes()[:length])
    assert _looked_up(interval, Confirmer(committer.store, 0, SEED)) == [None] * _SENT


class SickStore(UnsyncedStore):
    """Some ranges of files cannot be read."""

    error = 0
    first = 0

    def get_range(self, name: str, start: int, size: int) -> bytes | None:
        if self.error and start >= self.first:
            cause = OSError(self.error, "sick")
            raise StorageError(f"get {name}: {cause}") from cause
        return super().get_range(name, start, size)


@pytest.mark.parametrize(("error", "is_damage"), [(errno.EIO, True), (errno.EMFILE, False)])
def test_a_sector_that_cannot_be_read_is_damage_and_a_store_that_fails_is_none(
    tmp_path: Path, error: int, is_damage: bool
) -> None:
    committer, _ = _filled(tmp_path)
    store = SickStore(tmp_path)
    interval = open_interval(store, committer.intervals[0].interval).loaded()
    store.error, store.first = error, 9
    confirmer = Confirmer(store, 0, SEED)
    told = _looked_up(interval, confirmer)
    assert 200 <= _SENT - told.count(None) <= 300, "those of the first block are answered"
    assert (interval in confirmer.damaged) == is_damage
    store.error = 0
    assert _looked_up(interval, confirmer) == _RIGHT, "and all where it can be read again"


def test_a_missing_part_takes_out_its_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "IDS_PER_PART", 300)
    committer, interval = _filled(tmp_path)
    assert interval.interval.parts == 4
    (tmp_path / interval.interval.run_name(2)).unlink()
    told = _looked_up(interval, Confirmer(committer.store, 0, SEED))
    assert 200 < told.count(None) < 300
    assert all(seq in (None, right) for seq, right in zip(told, _RIGHT, strict=True))


@pytest.mark.parametrize("kind", ["bloom", "postings"])
def test_every_flip_of_the_other_files_is_found_when_they_are_opened(tmp_path: Path, kind: str) -> None:
    committer, interval = _filled(tmp_path)
    path = tmp_path / interval.interval.name(kind)
    data = path.read_bytes()
    for at in range(0, len(data), 1 + len(data) // 300):
        path.unlink()  # the bytes of the sound one are mapped
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(DerivedError):
            open_interval(committer.store, interval.interval) if kind == "bloom" else interval.postings()


def test_where_the_damage_cannot_be_mended_rows_are_refused(tmp_path: Path) -> None:
    committer, interval = _filled(tmp_path)
    (tmp_path / interval.interval.run_name(0)).write_bytes(b"rubbish")
    confirmer = Confirmer(committer.store, 0, SEED)
    assert _looked_up(interval, confirmer) == [None] * _SENT
    confirmer.lost.add(interval)
    rows = rows_of([_m(0)])
    assert confirmer.look_up(rows, [(interval, np.arange(1))])[0].status is RowStatus.UNREADABLE


def test_a_merge_of_damaged_runs_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 2)
    committer = open_committer(UnsyncedStore(tmp_path))
    for at in (0, 500):
        commit(committer, [_m(n) for n in range(at, at + 500)])
        seal(committer)
    path = tmp_path / committer.intervals[0].interval.run_name(0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = set(committer.store.list("sealed/shard=0000/"))
    with pytest.raises(DerivedError, match="block"):
        merge_all(committer)
    assert set(committer.store.list("sealed/shard=0000/")) == before


def test_rows_that_wait_are_looked_up_again_once_their_file_was_made_anew(tmp_path: Path) -> None:
    """The answer of a look-up is of the file that it met: another one in its place is asked again."""
    committer, interval = _filled(tmp_path)
    path = tmp_path / interval.interval.run_name(0)
    data = path.read_bytes()
    path.write_bytes(b"rubbish")
    committer.state.sealed = [interval]
    request = prepared([_m(0), _m(2000)])
    (aside,) = committer.plan([request]).aside
    while aside.look_up.step():
        pass
    request = replace(request, looked=aside.look_up.looked)
    job = committer.plan([request])
    assert not job.aside, "as it stands, that is all that is known"
    assert job.answers[0].firsts.waiting.tolist() == [True]  # type: ignore[union-attr]
    path.write_bytes(data)
    committer.state.sealed = [open_interval(committer.store, interval.interval)]
    (aside,) = committer.plan([request]).aside
    while aside.look_up.step():
        pass
    job = committer.plan([replace(request, looked=aside.look_up.looked)])
    assert next((r.status, r.seq) for r in answers_of(job.answers[0])) == ("duplicate", 1)  # type: ignore[arg-type]


def test_without_its_filter_every_id_is_looked_up(tmp_path: Path) -> None:
    committer, interval = _filled(tmp_path)
    committer.state.sealed = [SealedInterval(committer.store, interval.interval, None)]
    located = locate(committer.state, rows_of([_m(5000), _m(1)]))
    assert [rows.tolist() for _, rows in located.maybe] == [[0, 1]]
    rows = commit(committer, [_m(1), _m(5000)])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", 1), ("new", 334)]
