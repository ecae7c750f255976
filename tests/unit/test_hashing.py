"""Hashes whose values are stored: equal to the reference implementation, for ever."""

from __future__ import annotations

import numpy as np
import xxhash

from imray.kernels.hashing import hash_rows, id_fingerprints, mix, mix_keys


def _hash(raws: list[bytes]) -> list[int]:
    offsets = np.cumsum([0, *map(len, raws)]).astype(np.int32)
    return [int(h) for h in hash_rows(np.frombuffer(b"".join(raws), np.uint8), offsets)]


def test_xxh64_of_every_length() -> None:
    data = np.random.default_rng(0).bytes(400)
    raws = [data[:n] for n in range(300)] + [data[3:n] for n in range(4, 100)]
    assert _hash(raws) == [xxhash.xxh64_intdigest(r) for r in raws]


def test_xxh64_test_vector() -> None:
    """From the specification: the empty input, seed 0."""
    assert _hash([b""]) == [0xEF46DB3751D8E999]


def test_fingerprints_depend_on_id_conversation_and_seed() -> None:
    ids = np.array([[1, 2], [1, 2], [2, 1], [1, 3]], np.uint64)
    keys = np.array([10, 11], np.uint64)
    conv = np.array([0, 1, 0, 0], np.int32)
    one = id_fingerprints(ids, conv, keys, np.uint64(5))
    assert len(set(one.tolist())) == 4
    assert not np.isin(one, id_fingerprints(ids, conv, keys, np.uint64(6))).any()
    assert np.array_equal(one, id_fingerprints(ids, conv, keys, np.uint64(5)))


def test_fingerprints_are_pinned() -> None:
    """Sealed files hold them: another value is another format."""
    ids = np.array([[1, 2]], np.uint64)
    got = id_fingerprints(ids, np.zeros(1, np.int32), np.array([3], np.uint64), np.uint64(4))
    assert [int(v) for v in got] == [0xE83B254812C502DF]


def _mixed(index: int, keys: np.ndarray, h: np.ndarray, first: int = 0) -> None:
    indices = np.array([index], np.int32)
    valid = np.array([(index >= 0) << first], np.uint8)
    mix_keys(h, indices.ctypes.data, valid.ctypes.data, first, keys)


def test_null_differs_from_every_value_and_order_counts() -> None:
    keys = np.array([1, 2], np.uint64)
    outs = []
    for index in ([0, 1], [1, 0], [-1, 0], [0, -1], [-1, -1]):
        h = np.full(1, 99, np.uint64)
        for i in index:
            _mixed(i, keys, h)
        outs.append(int(h[0]))
    assert len(set(outs)) == 5


def test_mix_spreads_neighbours() -> None:
    bits = [bin(int(mix(np.uint64(i))) ^ int(mix(np.uint64(i + 1)))).count("1") for i in range(1000)]
    assert 28 < np.mean(bits) < 36
