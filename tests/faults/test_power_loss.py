"""Fault 2, as far as a model can show it: at every instant the power fails, and what was not fsynced is gone or torn.

The model is POSIX's promise, not a file system's: a file's bytes last from its fsync on, a name (of a file or folder)
from the next fsync of the folder that holds it, a removal likewise. What was not synced may or may not have lasted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imray.log import sealed
from imray.log.store import LocalStore
from imray.shard.committer import Committer
from tests.support.batches import DUPLICATE, Msg, collect, commit, merge_all, msg_id, open_committer, seal

_CONTENT_LOST, _NAMES_LOST, _CHANCE = "names last, bytes are torn", "names are lost", "chance"


@dataclass
class Journal:
    """What was asked of the disk, in order; shared by the incarnations of a folder's writer."""

    root: Path
    steps: list[tuple] = field(default_factory=list)  # type: ignore[type-arg]
    syncs_until_death: int = -1


class Death(Exception):
    """The process ends here."""


class JournalStore(LocalStore):
    """Notes each step. Does not fsync: the model decides what lasts."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.root)
        self.journal = journal

    def _write(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        self._written = Path(path)
        self.journal.steps.append(("write", self._written, b"".join(parts)))
        super()._write(path, parts)

    def _sync_file(self, fd: int) -> None:
        self.journal.steps.append(("sync file", self._written))

    def _link(self, temporary: str, path: str) -> bool:
        done = super()._link(temporary, path)
        if done:
            self.journal.steps.append(("link", Path(temporary), Path(path)))
        return done

    def _sync_folder(self, folder: str) -> None:
        self.journal.syncs_until_death -= 1
        if self.journal.syncs_until_death == 0:
            raise Death
        self.journal.steps.append(("sync folder", Path(folder), [p for p in Path(folder).iterdir() if p.is_dir()]))

    def delete(self, name: str) -> None:
        super().delete(name)
        self.journal.steps.append(("delete", self.root / name))


def _after_power_loss(journal: Journal, steps: Sequence[tuple], how: str, seed: int) -> dict[str, bytes]:  # type: ignore[type-arg]
    """The files that are left when the power fails after `steps`."""
    dice = random.Random(seed)
    data: dict[Path, bytes] = {}
    synced: set[Path] = set()
    now: dict[Path, Path] = {}
    lasting: dict[Path, Path] = {}
    folders = {journal.root}
    for step in steps:
        if step[0] == "write":
            data[step[1]] = step[2]
        elif step[0] == "sync file":
            synced.add(step[1])
        elif step[0] == "link":
            now[step[2]] = step[1]
        elif step[0] == "delete":
            now.pop(step[1], None)
        elif step[0] == "sync folder":
            folders.update(step[2])
            lasting = {p: t for p, t in lasting.items() if p.parent != step[1]}
            lasting |= {p: t for p, t in now.items() if p.parent == step[1]}
    left: dict[str, bytes] = {}
    for path in {**lasting, **now}:
        certain = lasting.get(path) == now.get(path)
        lasts = path in lasting if how == _NAMES_LOST else path in now if how == _CONTENT_LOST else dice.random() < 0.5
        reachable = how == _CONTENT_LOST or all(f in folders for f in path.parents if journal.root in (f, *f.parents))
        if (certain or lasts) and reachable:
            temporary = lasting.get(path) or now[path]
            torn = data[temporary][: len(data[temporary]) // 2]
            left[str(path.relative_to(journal.root))] = data[temporary] if temporary in synced else torn
    return left


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
        for how in (_NAMES_LOST, _CONTENT_LOST, _CHANCE):
            if not (steps[-1][0] == "ack" or (cut + len(how)) % 3 == 0):
                continue
            root = tmp_path / f"{cut}-{len(how)}"
            for name, data in _after_power_loss(journal, steps, how, cut).items():
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
    for skipped, how in (("sync file", _CONTENT_LOST), ("sync folder", _NAMES_LOST)):
        left = _after_power_loss(journal, [s for s in journal.steps if s[0] != skipped], how, 0)
        whole = _after_power_loss(journal, journal.steps, how, 0)
        assert left != whole
