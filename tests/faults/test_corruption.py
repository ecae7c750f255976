"""Faults 5 and 6: bytes flipped, cut off, or another file in the place: found, by name; never a wrong row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imray.cluster.replies import Appended, Refusal, Refused
from imray.core.errors import CorruptError
from imray.log import checkpoint, digest
from imray.log.reader import read_log
from imray.log.recovery import replay
from imray.log.sealed import read_postings
from imray.log.segment import open_segment, segment_name
from imray.log.store import LocalStore
from tests.faults.owners import owner_of
from tests.unit.batches import SEED, Msg, commit, flips, ipc_of, msg_id, open_committer

_OLD, _NEW = Msg("a", msg_id(1), b"old"), Msg("a", msg_id(9), b"new")
_SEALED = "sealed/shard=0000/00000000000000000001-00000000000000000003."
_CHECKPOINT = "checkpoint/shard=0000/00000000000000000003.parquet"
_FILES = {
    "segment": segment_name(0, 4),
    "covered segment": segment_name(0, 2),
    "checkpoint's last segment": segment_name(0, 3),
    "checkpoint": _CHECKPOINT,
    "ids": _SEALED + "ids.arrow",
    "bloom": _SEALED + "bloom.arrow",
    "postings": _SEALED + "postings.parquet",
}
_AT_START = ["segment", "checkpoint's last segment", "checkpoint", "bloom"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Segments 1 (fence) to 3 under a checkpoint, 4 and 5 after it; a second folder of the same make beside it."""
    for name in ("data", "other"):
        committer = open_committer(tmp_path / name)
        commit(committer, [_OLD, Msg("b", msg_id(2))])
        commit(committer, [Msg("a", msg_id(3), b"x" * 50, topic="t", content_type="text/plain")])
        committer.sealed(checkpoint.write(LocalStore(tmp_path / name), committer.freeze(), []))
        commit(committer, [_NEW])
        commit(committer, [Msg("a", msg_id(10))])
    return tmp_path / "data"


def _damages(data: bytes, every: int) -> list[tuple[str, bytes]]:
    size = len(data)
    out = []
    for at in flips(size, [(0, 64), (size - 400, size)], every):
        for mask in (0xFF, 1 << at % 8):
            out.append((f"byte {at} ^ {mask}", data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]))
    out += [(f"cut to {n}", data[:n]) for n in flips(size, [(0, 64), (size - 64, size)], every)]
    return [*out, ("a byte more", data + b"\0"), ("doubled", data + data), ("zeros", bytes(size))]


@pytest.mark.parametrize("kind", sorted(_FILES))
def test_every_byte_and_every_cut_of_a_file_is_found(root: Path, kind: str) -> None:
    name = _FILES[kind]
    data = (root / name).read_bytes()
    digest.verify(data, name)
    for what, damaged in _damages(data, 1):
        with pytest.raises(CorruptError) as e:
            digest.verify(damaged, name)
        assert e.value.file == name, what
        assert e.value.place, what


def test_a_large_segment_with_many_pages(tmp_path: Path) -> None:
    """Magic, headers, footer and metadata byte by byte, the pages in a dense sample."""
    committer = open_committer(tmp_path)
    commit(committer, [Msg(f"conv-{i % 999}", msg_id(i), b"%d" % i * 30, f"user-{i % 77}") for i in range(20_000)])
    name = segment_name(0, 2)
    data = (tmp_path / name).read_bytes()
    assert len(data) > 500_000
    assert open_segment(data, name).table().num_rows == 20_000
    size = len(data)
    for at in flips(size, [(0, 32), (size - 700, size)], 1499):
        with pytest.raises(CorruptError, match=name):
            open_segment(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :], name)
    for n in flips(size, [(size - 64, size)], 4999):
        with pytest.raises(CorruptError, match=name):
            open_segment(data[:n], name)


def _reads(store: LocalStore) -> dict[str, Callable[[], object]]:
    def recover() -> None:
        replay(store, 0, checkpoint.restore(store, 0, SEED))

    interval = checkpoint.newest_intervals(store, 0)[1][0]
    return {
        "segment": recover,
        "covered segment": lambda: list(read_log(store, 0, 0, bytes(16))),
        "checkpoint's last segment": recover,
        "checkpoint": recover,
        "ids": lambda: checkpoint.restore(store, 0, SEED).sealed[0].ids,  # type: ignore[attr-defined]
        "bloom": recover,
        "postings": lambda: read_postings(store, interval),
    }


@pytest.mark.parametrize("kind", sorted(_FILES))
def test_whoever_reads_a_damaged_file_is_told(root: Path, kind: str) -> None:
    path = root / _FILES[kind]
    data = path.read_bytes()
    read = _reads(LocalStore(root))[kind]
    read()
    for what, damaged in _damages(data, max(1, len(data) // 20))[::7]:
        path.write_bytes(damaged)
        with pytest.raises(CorruptError) as e:
            read()
        assert e.value.file == _FILES[kind], what


@pytest.mark.parametrize("kind", sorted(_FILES))
async def test_the_owner_refuses(root: Path, kind: str) -> None:
    """At the start, or when it first needs what is damaged; it says which file."""
    path = root / _FILES[kind]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = sorted(p.name for p in (root / "wal/shard=0000").iterdir())
    async with owner_of(LocalStore(root)) as owner:
        answer = await owner.append(ipc_of([_OLD]))
        if kind == "postings":  # whoever reads history reads them, not the owner
            assert isinstance(answer, Appended)
            return
        assert isinstance(answer, Refusal)
        assert answer.why is Refused.CORRUPT
        assert path.name in answer.detail
        again = await owner.append(ipc_of([_NEW]))
        assert isinstance(again, Refusal)
        assert again.why is Refused.CORRUPT
        assert path.name in str((await owner.status())["state"])
    if kind in _AT_START:
        assert sorted(p.name for p in (root / "wal/shard=0000").iterdir()) == before, "it wrote nothing"


def _swap(root: Path) -> None:
    four, five = (root / segment_name(0, n) for n in (4, 5))
    a, b = four.read_bytes(), five.read_bytes()
    four.write_bytes(b)
    five.write_bytes(a)


def _copy(source: str, target: str) -> Callable[[Path], None]:
    return lambda root: (root / target).write_bytes((root / source).read_bytes()) and None


def _other_shard(root: Path) -> None:
    from imray.cluster.committer import Committer
    from imray.settings import Settings

    committer = Committer.open(LocalStore(root.parent / "third"), 1, SEED, Settings(), lambda: 1)
    for n in range(4):
        commit(committer, [Msg("a", msg_id(n))])
    _copy(f"../third/{segment_name(1, 4)}", segment_name(0, 4))(root)


_IN_ANOTHERS_PLACE: dict[str, tuple[Callable[[Path], None], str]] = {
    "two swapped": (_swap, segment_name(0, 4)),
    "one over another": (_copy(segment_name(0, 5), segment_name(0, 4)), segment_name(0, 4)),
    "an older one over the last": (_copy(segment_name(0, 2), segment_name(0, 5)), segment_name(0, 5)),
    "of another shard": (_other_shard, segment_name(0, 4)),
    "same shard and number, another log": (_copy(f"../other/{segment_name(0, 4)}", segment_name(0, 4)), "0004"),
    "another log's under the checkpoint": (
        _copy(f"../other/{segment_name(0, 3)}", segment_name(0, 3)),
        segment_name(0, 3),
    ),
    "another log's checkpoint": (_copy(f"../other/{_CHECKPOINT}", _CHECKPOINT), "0003.parquet"),
    "a hole": (lambda root: (root / segment_name(0, 4)).unlink(), segment_name(0, 4)),
    "the tail is gone": (lambda root: [(root / segment_name(0, n)).unlink() for n in (3, 4, 5)] and None, "0003"),
    "a segment as checkpoint": (_copy(segment_name(0, 3), _CHECKPOINT), _CHECKPOINT),
    "postings as segment": (_copy(_FILES["postings"], segment_name(0, 4)), segment_name(0, 4)),
    "bloom as segment": (_copy(_FILES["bloom"], segment_name(0, 4)), segment_name(0, 4)),
    "ids as bloom": (_copy(_FILES["ids"], _FILES["bloom"]), _FILES["bloom"]),
    "a segment as bloom": (_copy(segment_name(0, 3), _FILES["bloom"]), _FILES["bloom"]),
    "a foreign file in the log": (_copy(segment_name(0, 3), "wal/shard=0000/zebra"), "zebra"),
}


@pytest.mark.parametrize("how", sorted(_IN_ANOTHERS_PLACE))
async def test_a_whole_file_in_anothers_place_is_refused(root: Path, how: str) -> None:
    change, named = _IN_ANOTHERS_PLACE[how]
    change(root)
    async with owner_of(LocalStore(root)) as owner:
        answer = await owner.append(ipc_of([_NEW]))
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.CORRUPT
    assert named in answer.detail


async def test_bloom_in_place_of_ids_is_refused_when_it_is_needed(root: Path) -> None:
    _copy(_FILES["bloom"], _FILES["ids"])(root)
    async with owner_of(LocalStore(root)) as owner:
        answer = await owner.append(ipc_of([_OLD]))
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.CORRUPT
    assert _FILES["ids"] in answer.detail
