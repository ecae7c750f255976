"""Names and heads: against a dict, and where two names share one 64-bit key."""

from __future__ import annotations

import numpy as np
import pytest

from imray.core import conversations as module
from imray.core.conversations import Conversations
from imray.kernels.numbering import assign_new


def _columns(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    raw = [n.encode() for n in names]
    offsets = np.cumsum([0, *map(len, raw)]).astype(np.int32)
    return np.frombuffer(b"".join(raw), np.uint8), offsets


def _add(conversations: Conversations, names: list[str]) -> None:
    conversations.add(*_columns(names), np.arange(len(names), dtype=np.int32))


def test_against_a_dict_while_it_grows() -> None:
    conversations, names = Conversations(), [f"conv-{i}-{'ä' * (i % 7)}" for i in range(3000)]
    for start in range(0, 3000, 37):
        _add(conversations, names[start : start + 37])
    assert conversations.count == 3000
    assert conversations.find(*_columns(names)).tolist() == list(range(3000))
    assert conversations.find(*_columns(["", "conv", "conv-1", "conv-3000-"])).tolist() == [-1, -1, -1, -1]
    assert [conversations.name(i) for i in (0, 13, 2999)] == [names[0], names[13], names[2999]]
    assert conversations.index(names[77]) == 77
    assert conversations.index("nobody") == -1
    text, ends, heads = conversations.copy_columns()
    assert text.tobytes().decode() == "".join(names)
    assert (len(ends), len(heads)) == (3001, 3000)
    assert not heads.any()
    assert conversations.nbytes / 3000 < 200


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1, 0xFFFFFFFF00000000])
def test_two_names_with_one_key_stay_two(monkeypatch: pytest.MonkeyPatch, key: int) -> None:
    """Keys are no secret: somebody may choose names that collide."""
    find = module.find_names
    monkeypatch.setattr(module, "hash_rows", lambda _data, offsets: np.full(len(offsets) - 1, key, np.uint64))
    conversations, names = Conversations(), [f"n{i}" for i in range(100)]
    for name in names:
        _add(conversations, [name])
    assert [conversations.index(n) for n in names] == list(range(100))
    assert conversations.index("n100") == -1
    assert conversations.index("n") == -1
    assert find is module.find_names


def test_only_chosen_names_are_added() -> None:
    conversations = Conversations()
    data, offsets = _columns(["a", "bb", "ccc"])
    conversations.add(data, offsets, np.array([2, 0], np.int32))
    assert [conversations.name(i) for i in range(2)] == ["ccc", "a"]
    conversations.add(data, offsets, np.array([], np.int32))
    assert conversations.count == 2


def test_new_ones_get_indices_in_the_order_of_their_rows() -> None:
    known = np.array([-1, 7, -1, -1], np.int32)
    fresh = assign_new(np.array([2, 1, 0, 2, 0], np.int32), known, 10)
    assert fresh.tolist() == [2, 0]
    assert known.tolist() == [11, 7, 10, -1], "a name that no row uses is not added"


def test_reserve_keeps_heads() -> None:
    conversations = Conversations()
    _add(conversations, ["a", "b"])
    conversations.heads[:2] = [5, 6]
    conversations.reserve(1000)
    assert conversations.heads[:3].tolist() == [5, 6, 0]
    assert len(conversations.scratch) >= 1002
    assert conversations.find(*_columns(["a", "b"])).tolist() == [0, 1]
