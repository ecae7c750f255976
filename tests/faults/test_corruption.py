"""Faults 5 and 6: bytes flipped, cut off, or another file in the place: found, by name; never a wrong row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imray.core.columns import RowStatus
from imray.core.errors import CorruptError, DerivedError
from imray.core.log_progress import LogProgress
from imray.core.replies import Appended, Refusal, Refused
from imray.log import checkpoint, digest
from imray.log.reader import read_log
from imray.log.sealed import open_interval, read_postings
from imray.log.segment import open_segment, segment_name
from imray.log.store import LocalStore
from imray.shard.recovery import replay
from tests.support.batches import SEED, Msg, commit, flips, ipc_of, msg_id, open_committer
from tests.support.owners import owner_of, until_async

_OLD, _NEW = Msg("a", msg_id(1), b"old"), Msg("a", msg_id(9), b"new")
_OTHER = Msg("a", msg_id(3), b"x" * 50, topic="t", content_type="text/plain")
_CHECKPOINT = "checkpoint/shard=0000/00000000000000000003.parquet"
_LOG = {
    "segment": segment_name(0, 4),
    "covered segment": segment_name(0, 2),
    "checkpoint's last segment": segment_name(0, 3),
}
_DERIVED = {
    "checkpoint": "checkpoint/shard=0000/*",
    "ids": "sealed/shard=0000/*.ids.*",
    "bloom": "sealed/shard=0000/*.bloom.arrow",
    "postings": "sealed/shard=0000/*.postings.parquet",
}


def _file(root: Path, kind: str) -> str:
    """The name of the one file of a kind."""
    if kind in _LOG:
        return _LOG[kind]
    (path,) = root.glob(_DERIVED[kind])
    return str(path.relative_to(root))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Segments 1 (fence) to 3 under a checkpoint, 4 and 5 after it; a second folder of the same make beside it."""
    for name in ("data", "other"):
        committer = open_committer(tmp_path / name)
        commit(committer, [_OLD, Msg("b", msg_id(2))])
        commit(committer, [_OTHER])
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


@pytest.mark.parametrize("kind", sorted({**_LOG, **_DERIVED}))
def test_every_byte_and_every_cut_of_a_file_is_found(root: Path, kind: str) -> None:
    name = _file(root, kind)
    data = (root / name).read_bytes()
    digest.verify(data, name)
    for what, damaged in _damages(data, 1):
        with pytest.raises(CorruptError) as e:
            digest.verify(damaged, name)
        assert e.value.file == name, what
        assert e.value.where, what


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

    (name,) = checkpoint.checkpoints(store, 0)
    (interval,) = checkpoint.checkpoint_meta(store, name).intervals
    return {
        "segment": recover,
        "covered segment": lambda: list(read_log(store, 0, LogProgress())),
        "checkpoint's last segment": lambda: list(read_log(store, 0, LogProgress())),
        "checkpoint": lambda: checkpoint.checkpoint_meta(store, name),
        "ids": lambda: checkpoint.restore(store, 0, SEED).sealed[0].ids,  # type: ignore[attr-defined]
        "bloom": lambda: open_interval(store, interval),
        "postings": lambda: read_postings(store, interval),
    }


@pytest.mark.parametrize("kind", sorted({**_LOG, **_DERIVED}))
def test_whoever_reads_a_damaged_file_is_told(root: Path, kind: str) -> None:
    name = _file(root, kind)
    path = root / name
    data = path.read_bytes()
    read = _reads(LocalStore(root))[kind]
    read()
    for what, damaged in _damages(data, max(1, len(data) // 20))[::7]:
        path.write_bytes(damaged)
        with pytest.raises(CorruptError if kind in _LOG else DerivedError) as e:
            read()
        assert e.value.file == name, what


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_the_owner_refuses_a_damaged_tail(root: Path) -> None:
    """What comes after the checkpoint cannot be known without it; it says which file, and writes nothing."""
    path = root / _LOG["segment"]
    _flip(path)
    before = sorted(p.name for p in (root / "wal/shard=0000").iterdir())
    async with owner_of(LocalStore(root)) as owner:
        for message in (_OLD, _NEW):
            answer = await owner.append(ipc_of([message]))
            assert isinstance(answer, Refusal)
            assert answer.why is Refused.CORRUPT
            assert path.name in answer.detail
        assert path.name in (await owner.status()).detail
    assert sorted(p.name for p in (root / "wal/shard=0000").iterdir()) == before, "it wrote nothing"


async def test_a_tail_that_was_mended_serves_by_itself(root: Path) -> None:
    path = root / _LOG["segment"]
    sound = path.read_bytes()
    _flip(path)
    async with owner_of(LocalStore(root)) as owner:
        assert isinstance(await owner.append(ipc_of([_NEW])), Refusal)
        path.write_bytes(sound)
        await until_async(lambda: owner.state == "serving", "the shard looks again")
        assert isinstance(await owner.append(ipc_of([_NEW])), Appended)


@pytest.mark.parametrize(("kind", "lost"), [("covered segment", _OLD), ("checkpoint's last segment", _OTHER)])
async def test_a_rotten_old_segment_takes_out_no_retry(root: Path, kind: str, lost: Msg) -> None:
    """What was sealed is answered from the ids, whatever became of the segment."""
    _flip(root / _LOG[kind])
    async with owner_of(LocalStore(root)) as owner:
        answer = await owner.append(ipc_of([Msg("b", msg_id(50)), lost, _NEW, Msg("c", msg_id(51))]))
        assert isinstance(answer, Appended)
        assert answer.firsts is not None
        assert answer.firsts.at.tolist() == [1, 2]
        assert answer.firsts.status.tolist() == [RowStatus.DUPLICATE, RowStatus.DUPLICATE]
        assert answer.seqs().tolist() == [2, 2 if lost.id == msg_id(3) else 1, 3, 1]
        assert owner.state == "serving"


def _swap(root: Path) -> None:
    four, five = (root / segment_name(0, n) for n in (4, 5))
    a, b = four.read_bytes(), five.read_bytes()
    four.write_bytes(b)
    five.write_bytes(a)


def _copy(source: str, target: str) -> Callable[[Path], None]:
    """Put one file, or one of a kind, in the place of another."""

    def copy(root: Path) -> None:
        there = _file(root, source) if source in _DERIVED else source
        instead = _file(root, target) if target in _DERIVED else target
        (root / instead).write_bytes((root / there).read_bytes())

    return copy


def _other_shard(root: Path) -> None:
    from imray.settings import Settings
    from imray.shard.committer import Committer

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
    "a hole": (lambda root: (root / segment_name(0, 4)).unlink(), segment_name(0, 4)),
    "the tail is gone": (lambda root: [(root / segment_name(0, n)).unlink() for n in (3, 4, 5)] and None, "0003"),
    "postings as segment": (_copy("postings", segment_name(0, 4)), segment_name(0, 4)),
    "bloom as segment": (_copy("bloom", segment_name(0, 4)), segment_name(0, 4)),
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


_DERIVED_IN_ANOTHERS_PLACE = {
    "another log's checkpoint": _copy(f"../other/{_CHECKPOINT}", _CHECKPOINT),
    "a segment as checkpoint": _copy(segment_name(0, 3), "checkpoint"),
    "ids as bloom": _copy("ids", "bloom"),
    "bloom as ids": _copy("bloom", "ids"),
    "a segment as bloom": _copy(segment_name(0, 3), "bloom"),
}


@pytest.mark.parametrize("how", sorted(_DERIVED_IN_ANOTHERS_PLACE))
async def test_a_derived_file_in_anothers_place_is_passed_over(root: Path, how: str) -> None:
    _DERIVED_IN_ANOTHERS_PLACE[how](root)
    async with owner_of(LocalStore(root)) as owner:

        async def known() -> bool:
            answer = await owner.append(ipc_of([_OLD, _NEW]))
            return isinstance(answer, Appended) and answer.seqs().tolist() == [1, 3]

        await until_async(known, "old ids have their first numbers")
        assert (await owner.status()).notes, "it is said"
