"""A model of power loss: at any instant what was not fsynced is gone or torn.

The model is POSIX's promise, not a file system's: a file's bytes last from its fsync on, a name (of a file or folder)
from the next fsync of the folder that holds it, a removal likewise. What was not synced may or may not have lasted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imray.log.store import LocalStore

CONTENT_LOST = "names last, bytes are torn"
NAMES_LOST = "names are lost"
CHANCE = "chance"
WAYS = (NAMES_LOST, CONTENT_LOST, CHANCE)


@dataclass
class Journal:
    """What was asked of the disk, in order; shared by the incarnations of a folder's writer."""

    root: Path
    steps: list[tuple] = field(default_factory=list)  # type: ignore[type-arg]
    syncs_until_death: int = -1
    stores: list[LocalStore] = field(default_factory=list)
    """All that there were: another one in the memory of one that is gone would give a file its temporary name."""


class Death(BaseException):
    """The process ends here."""


class JournalStore(LocalStore):
    """Notes each step. Does not fsync: the model decides what lasts."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.root)
        self.journal = journal
        journal.stores.append(self)

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


def files_after_power_loss(journal: Journal, steps: Sequence[tuple], how: str, seed: int) -> dict[str, bytes]:  # type: ignore[type-arg]
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
        lasts = path in lasting if how == NAMES_LOST else path in now if how == CONTENT_LOST else dice.random() < 0.5
        reachable = how == CONTENT_LOST or all(f in folders for f in path.parents if journal.root in (f, *f.parents))
        if (certain or lasts) and reachable:
            temporary = lasting.get(path) or now[path]
            torn = data[temporary][: len(data[temporary]) // 2]
            left[str(path.relative_to(journal.root))] = data[temporary] if temporary in synced else torn
    return left
