"""Fault 2, as far as a model can show it: at every instant the power fails, and what was not fsynced is gone or torn.

The model is POSIX's promise, not a file system's: a file's bytes last from its fsync on, a name (of a file or folder)
from the next fsync of the folder that holds it, a removal likewise. What was not synced may or may not have lasted.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from imray.log import sealed
from imray.log.store import LocalStore
from imray.shard.committer import Committer
from tests.support.batches import DUPLICATE, Msg, collect, commit, merge_all, msg_id, open_committer, seal
from tests.support.power_loss import (
    CONTENT_LOST,
    NAMES_LOST,
    WAYS,
    Death,
    Journal,
    JournalStore,
    files_after_power_loss,
)


def _live(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three incarnations with commits, checkpoints, a merge and a collection; acks are noted."""
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 2)
    n = 0
    while n < 12:
        try:
            committer: Committer = open_committer(JournalStore(journal))
            for i in range(4):
                messages = [Msg("a", msg_id(n), b"%d" % n), Msg("b", msg_id(n), b"%d" % n)]
                acks = [(m, row.seq) for m, row in zip(messages, commit(committer, messages), strict=True)]
                journal.steps.append(("ack", acks))
                n += 1
                if i == 2:
                    seal(committer)
                    collect(committer)
                    merge_all(committer)
        except Death:
            continue


@pytest.mark.parametrize("dies_at_sync", [-1, 1, 2, 3, 4, 5, 6])
def test_nothing_acked_is_lost_whenever_the_power_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at_sync: int
) -> None:
    """`dies_at_sync`: a first process ended just before a sync of a folder, maybe one it had just made."""
    journal = Journal(tmp_path / "data", syncs_until_death=dies_at_sync)
    journal.root.mkdir()
    _live(journal, monkeypatch)
    cuts = range(1, len(journal.steps) + 1, 1 if dies_at_sync < 0 else 7)
    for cut in cuts:
        steps = journal.steps[:cut]
        acked = [ack for step in steps if step[0] == "ack" for ack in step[1]]
        for how in WAYS:
            if not (steps[-1][0] == "ack" or (cut + len(how)) % 3 == 0):
                continue
            root = tmp_path / f"{cut}-{len(how)}"
            for name, data in files_after_power_loss(journal, steps, how, cut).items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(data)
            committer = open_committer(_Unsynced(root))
            if acked:
                rows = commit(committer, [m for m, _ in acked])
                assert [(r.status, r.seq) for r in rows] == [(DUPLICATE, seq) for _, seq in acked]


class _Unsynced(LocalStore):
    """Recovery in the test itself needs no disk that lasts."""

    def _sync_file(self, fd: int) -> None:
        pass

    def _sync_folder(self, folder: str) -> None:
        pass


def test_the_model_finds_a_store_that_does_not_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of the check: without the fsync of files, or of folders, acked messages are lost."""
    journal = Journal(tmp_path / "data")
    journal.root.mkdir()
    _live(journal, monkeypatch)
    for skipped, how in (("sync file", CONTENT_LOST), ("sync folder", NAMES_LOST)):
        left = files_after_power_loss(journal, [s for s in journal.steps if s[0] != skipped], how, 0)
        whole = files_after_power_loss(journal, journal.steps, how, 0)
        assert left != whole
