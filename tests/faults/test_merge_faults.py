"""Faults 16 to 18 and 23 on merges: killed at each step, twice at once, a power loss at each step, readers that die."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imray.history import merger as mergers
from imray.history import merging
from imray.history.merger import Merger
from imray.history.table import Table
from imray.log import checkpoint
from imray.log.marks import MARKS_KEPT, mark_prefix
from tests.support.batches import DUPLICATE, Msg, commit, msg_id, open_committer
from tests.support.merging import (
    READ_S_MAX,
    SETTINGS,
    HookedStore,
    ManualClock,
    UnsyncedStore,
    WrittenLog,
    all_rows,
    files_of,
    merger_of,
    once,
    segments_left,
    work_all,
)
from tests.support.power_loss import CHANCE, WAYS, Death, Journal, JournalStore, files_after_power_loss

IN_STEPS = replace(SETTINGS, merge_step_bytes_max=4 * 1024)
"""Two or three segments make a run."""
_CHANGES = ("put", "delete", "sync")


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runs become a larger one, and a few commits a checkpoint."""
    monkeypatch.setattr(merging, "MERGE_FANOUT", 2)
    monkeypatch.setattr(mergers, "CHECKPOINT_EVERY", 3)


def _write(store: UnsyncedStore | JournalStore) -> WrittenLog:
    """A log of two incarnations, covered by two checkpoints as a quiet shard leaves it."""
    log = WrittenLog(store)
    log.write(3)
    log.checkpoint()
    log.reopen()
    log.write(3)
    log.checkpoint()
    checkpoint.write_twin(store, 0)
    return log


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counter[tuple[str, int]]]:
    """A folder, to be copied, and the messages that were acked."""
    root = tmp_path_factory.mktemp("source") / "data"
    return root, once(_write(UnsyncedStore(root)))


def _check(root: Path, acked: Counter[tuple[str, int]]) -> None:
    """Each row once, no segment but fences, nothing that no commit names."""
    store = UnsyncedStore(root)
    assert all_rows(store) == acked
    assert segments_left(store) == ([], [1, 5])
    assert files_of(root, "history/shard=0000") == sorted(Table(store).verify().files)
    assert files_of(root, "tmp") == files_of(root, "pins") == []
    assert 1 <= len(store.list(mark_prefix(0))) <= MARKS_KEPT


def _merge_all(store: UnsyncedStore) -> Merger:
    """A merger that does all there is to do; its clock passes as it needs."""
    clock = ManualClock()
    merger = merger_of(store, clock, IN_STEPS)
    work_all(merger, clock)
    assert merger.status(0).detail == []
    return merger


def _count_calls(source: Path, root: Path) -> list[str]:
    shutil.copytree(source, root)
    calls: list[str] = []
    store = HookedStore(root, lambda verb, _: calls.append(verb))
    _merge_all(store)
    return calls


def test_killed_before_each_change(tmp_path: Path, source: tuple[Path, Counter[tuple[str, int]]]) -> None:
    """Another one goes on. Reads change nothing, so to die at one is to die before the next change."""
    folder, acked = source
    changes = [verb for verb in _count_calls(folder, tmp_path / "counted") if verb in _CHANGES]
    _check(tmp_path / "counted", acked)
    assert len(changes) > 20
    for n in range(len(changes)):
        root = tmp_path / str(n)
        shutil.copytree(folder, root)
        left = [n]

        def dies(verb: str, _name: str, left: list[int] = left) -> None:
            left[0] -= verb in _CHANGES
            if left[0] < 0:
                raise Killed

        with pytest.raises(Killed):
            _merge_all(HookedStore(root, dies))
        assert set(all_rows(UnsyncedStore(root)).items()) == set(acked.items())
        _merge_all(UnsyncedStore(root))
        _check(root, acked)
        shutil.rmtree(root)


def test_another_merger_does_everything_between_any_two_calls(
    tmp_path: Path, source: tuple[Path, Counter[tuple[str, int]]]
) -> None:
    """The first sleeps before a call, while the second merges, marks and deletes all that there is."""
    folder, acked = source
    calls = _count_calls(folder, tmp_path / "counted")
    chosen = [n for n, verb in enumerate(calls) if verb in _CHANGES or n % 13 == 0]
    for n in chosen:
        root = tmp_path / str(n)
        shutil.copytree(folder, root)
        left = [n]

        def sleeps(_verb: str, _name: str, root: Path = root, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                _merge_all(UnsyncedStore(root))

        _merge_all(HookedStore(root, sleeps))
        _merge_all(UnsyncedStore(root))
        _check(root, acked)
        shutil.rmtree(root)


def test_two_mergers_take_turns(tmp_path: Path, source: tuple[Path, Counter[tuple[str, int]]]) -> None:
    """Step by step, in seeded orders, each with a clock of its own."""
    folder, acked = source
    for seed in range(3):
        root = tmp_path / str(seed)
        shutil.copytree(folder, root)
        dice = random.Random(seed)
        clocks = [ManualClock(), ManualClock()]
        both = [merger_of(UnsyncedStore(root), clock, IN_STEPS) for clock in clocks]
        for n in range(40):
            at = dice.randrange(2)
            both[at].step(0)
            clocks[at].pass_s(dice.random() * READ_S_MAX / 2)
            if n % 4 == 0:
                assert all_rows(UnsyncedStore(root)) == acked
        _merge_all(UnsyncedStore(root))
        _check(root, acked)


def test_two_mergers_and_a_writer_at_once(tmp_path: Path) -> None:
    """In threads, with the time of the machine."""
    root = tmp_path / "data"
    log = WrittenLog(UnsyncedStore(root))
    quick = replace(IN_STEPS, read_s_max=0.02, orphan_s=0.2)
    ended = threading.Event()
    errors: list[BaseException] = []
    done: list[Merger] = []

    def run() -> None:
        merger = merger_of(UnsyncedStore(root), time.monotonic, quick)
        done.append(merger)
        try:
            while not ended.is_set():
                merger.step(0)
        except BaseException as e:
            errors.append(e)
            raise

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(12):
        log.write(5)
        log.checkpoint()
        if i % 5 == 4:
            log.reopen()
    ended.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(merger.done.segments for merger in done) > 0
    assert [merger.status(0).detail for merger in done] == [[], []]
    store = UnsyncedStore(root)
    assert all_rows(store) == once(log)
    _merge_all(store)
    assert all_rows(store) == once(log)
    assert files_of(root, "history/shard=0000") == sorted(Table(store).snapshot().files)


# Power loss


def _merge_with_deaths(journal: Journal) -> None:
    """Two mergers in turn; one that dies before a sync is followed by the other."""
    clock = ManualClock()
    for _ in range(3):
        try:
            work_all(merger_of(JournalStore(journal), clock, IN_STEPS), clock)
            return
        except Death:
            continue
    raise AssertionError("it died more than once")


def _journal(root: Path, dies_at_sync: int = -1) -> tuple[Journal, WrittenLog, int]:
    """What is asked of a disk while a log is merged, and where in it merging begins."""
    journal = Journal(root)
    root.mkdir()
    log = _write(JournalStore(journal))
    begin = len(journal.steps)
    journal.syncs_until_death = dies_at_sync
    _merge_with_deaths(journal)
    return journal, log, begin


def _sync_of(journal: Journal, begin: int, folder: str, nth: int) -> int:
    """Which of all syncs of folders is the n-th of this folder's."""
    syncs = [str(step[1].relative_to(journal.root)) for step in journal.steps[begin:] if step[0] == "sync folder"]
    return [n for n, name in enumerate(syncs, 1) if name == folder][nth]


def _restore(journal: Journal, cut: int, how: str, seed: int, root: Path) -> UnsyncedStore:
    """What is left after a power loss."""
    for name, data in files_after_power_loss(journal, journal.steps[:cut], how, seed).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return UnsyncedStore(root)


def _check_recovery(store: UnsyncedStore, log: WrittenLog) -> None:
    """A new writer goes on where the log ended, and knows every id."""
    committer = open_committer(store)
    assert [row.seq for row in commit(committer, [Msg("a", msg_id(999_999))])] == [7]
    retries = [Msg(conv, id_, log.bodies[id_]) for (conv, _), id_ in log.acked.items()]
    answers = [(row.status, row.seq) for row in commit(committer, retries)]
    assert answers == [(DUPLICATE, seq) for _, seq in log.acked]


@pytest.mark.parametrize("dies_in", [None, "history/shard=0000", "history/_delta_log", "merged/log=00000"])
def test_nothing_is_lost_whenever_the_power_fails(tmp_path: Path, dies_in: str | None) -> None:
    """`dies_in`: a first merger ended just before a sync of that folder, and another one went on: it may not build on
    names that are not durable."""
    journal, log, begin = _journal(tmp_path / "whole")
    if dies_in is not None:
        nth = _sync_of(journal, begin, dies_in, 0 if dies_in.startswith("merged") else -1)
        journal, log, begin = _journal(tmp_path / "dies", nth)
    dice = random.Random(dies_in)
    deletes = [n for n, step in enumerate(journal.steps) if step[0] == "delete" and n >= begin]
    for cut in {*(n + 1 for n in deletes), *range(begin, len(journal.steps) + 1, 7)}:
        root = tmp_path / f"{cut}"
        how = dice.choice([CHANCE, *WAYS])
        store = _restore(journal, cut, how, cut, root)
        assert all_rows(store) == once(log), (cut, how)
        _merge_all(store)
        _check(root, once(log))
        _check_recovery(store, log)
        shutil.rmtree(root)


def _without_sync(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule that is left out. Nothing else makes the folder durable by the way."""
    monkeypatch.setattr(mergers, "CHECKPOINT_EVERY", 1000)
    monkeypatch.setattr(merging, "MERGE_FANOUT", 1000)
    real: Callable[[JournalStore, str], None] = JournalStore.sync
    monkeypatch.setattr(JournalStore, "sync", lambda self, p: None if p == folder else real(self, p))


@pytest.mark.parametrize(("folder", "nth"), [("history/_delta_log/", -1), ("merged/log=00000/", 0)])
def test_without_a_sync_segments_are_lost(
    tmp_path: Path, folder: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of the check: who deletes on the word of a name that is not durable loses what it deletes."""
    _without_sync(folder, monkeypatch)
    journal, _, begin = _journal(tmp_path / "whole")
    journal, log, begin = _journal(tmp_path / "dies", _sync_of(journal, begin, folder.rstrip("/"), nth))
    losses = 0
    for seed in range(8):
        store = _restore(journal, len(journal.steps), CHANCE, seed, tmp_path / str(seed))
        is_marked = bool(store.list(mark_prefix(0)))
        losses += all_rows(store) != once(log) or (not is_marked and segments_left(store)[0] != [2, 3, 4, 6, 7, 8])
    assert losses


@pytest.mark.parametrize("syncs", [True, False])
def test_what_another_merger_replaced_is_deleted_when_that_is_durable(
    tmp_path: Path, syncs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one dies right after its commit has its name."""
    _without_sync("nothing" if syncs else "history/_delta_log/", monkeypatch)
    journal = Journal(tmp_path / "data")
    journal.root.mkdir()
    log = _write(JournalStore(journal))
    clock = ManualClock()
    first = merger_of(JournalStore(journal), clock, IN_STEPS)
    work_all(first, clock)
    journal.syncs_until_death = 6  # of tmp's, history's and the shard's folder, the run, the log's folder: the commit
    second = merger_of(JournalStore(journal), clock, IN_STEPS)
    with monkeypatch.context() as patched:
        patched.setattr(merging, "MERGE_FANOUT", 2)
        with pytest.raises(Death):
            work_all(second, clock)
    work_all(first, clock)
    assert first.done.files_deleted == 2
    stores = [_restore(journal, len(journal.steps), CHANCE, seed, tmp_path / str(seed)) for seed in range(8)]
    assert all(_is_whole(store) and all_rows(store) == once(log) for store in stores) is syncs


def _is_whole(store: UnsyncedStore) -> bool:
    """Whether every file that the table names is there."""
    return all(store.exists(name) for name in Table(store).snapshot().files)
