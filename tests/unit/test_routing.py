"""Routing: the log depends on its answers, so they are pinned here."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imray.core.errors import InvalidError
from imray.core.routing import CONV_ID_BYTES_MAX, check_conv_id, check_text, conv_key, shard_of


@pytest.mark.parametrize(
    ("conv_id", "key"),
    [  # XXH64 with seed 0 as its specification defines it; "" and "abc" are its published test values
        ("", 0xEF46DB3751D8E999),
        ("a", 0xD24EC4F1A98C6E5B),
        ("abc", 0x44BC2CF5AD770999),
    ],
)
def test_the_key_may_never_change(conv_id: str, key: int) -> None:
    assert conv_key(conv_id) == key


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 4096))
def test_the_shard_is_in_range_and_follows_from_the_key(conv_id: str, shards: int) -> None:
    assert 0 <= shard_of(conv_id, shards) < shards
    assert shard_of(conv_id, shards) == conv_key(conv_id) % shards


def test_conversations_spread_evenly() -> None:
    rows = Counter(shard_of(f"room-{n}", 16) for n in range(16_000))
    assert len(rows) == 16
    assert 800 < min(rows.values()) <= max(rows.values()) < 1200


@pytest.mark.parametrize("conv_id", ["a", "a/b?c#d%", "..", "ü" * 64, "x" * CONV_ID_BYTES_MAX, " ", "房间", "👩‍👩‍👧"])
def test_names_that_are_allowed(conv_id: str) -> None:
    check_conv_id(conv_id)


@pytest.mark.parametrize(
    ("conv_id", "reason"),
    [
        ("", "0 bytes of UTF-8"),
        ("x" * 129, "129 bytes of UTF-8"),
        ("ü" * 64 + "x", "129 bytes of UTF-8"),
        ("a\nb", "control character"),
        ("a\0", "control character"),
        ("\x7f", "control character"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_names_that_are_refused(conv_id: str, reason: str) -> None:
    with pytest.raises(InvalidError, match=reason):
        check_conv_id(conv_id)


def test_the_refusal_names_the_field() -> None:
    with pytest.raises(InvalidError, match="topic has 5 bytes of UTF-8: 1 to 4 are allowed"):
        check_text("abcde", "topic", 4)
