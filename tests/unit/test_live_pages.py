"""Pages over a live connection: cut so that a client can take one in a frame, with nothing lost at the cut."""

from __future__ import annotations

from typing import Any

import pytest

from api.live_formats import JSON, MSGPACK, Format, live_messages
from api.live_items import PageItem
from api.live_pages import PAGE_BYTES_MAX, cut
from imray.core.pages import Page
from imray.log.message_rows import message_rows
from tests.support.api_system import page_of


def page(sizes: list[int], holes: list[tuple[int, int, str]], following: int | None, descending: bool) -> Page[Any]:
    """Messages with the numbers 1, 2, ..., with bodies of these sizes."""
    table = page_of([b"x" * size for size in sizes])
    if descending:
        table = table.take(list(range(len(sizes)))[::-1])
    return Page(table, holes, 1, len(sizes), following)


def test_a_page_that_fits_is_told_as_it_is() -> None:
    table, holes, following = cut(page([10, 10], [(3, 5, "void")], 5, False), False, 700, True)
    assert table.num_rows == 2
    assert [(h.low, h.high) for h in holes] == [(3, 5)]
    assert following == 5


@pytest.mark.parametrize("descending", [False, True])
def test_a_large_page_goes_on_where_it_was_cut(descending: bool) -> None:
    found = page([10] * 6, [(0, 0, "void"), (7, 9, "void")], None, descending)
    table, holes, following = cut(found, descending, 950, True)
    assert table.column("conv_seq").to_pylist() == ([6, 5, 4] if descending else [1, 2, 3])
    assert following == (4 if descending else 3)
    assert [(h.low, h.high) for h in holes] == ([(7, 9)] if descending else [(0, 0)])


def test_one_message_goes_however_large_it_is() -> None:
    table, _, following = cut(page([50, 10], [], None, False), False, 35, True)
    assert (table.num_rows, following) == (1, 1)
    table, _, following = cut(page([50], [], None, False), False, 35, True)
    assert (table.num_rows, following) == (1, None)
    table, _, following = cut(page([], [(1, 4, "void")], 4, False), False, 35, True)
    assert (table.num_rows, following) == (0, 4)


@pytest.mark.parametrize("spoken", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "body", [b"x" * 1000, b"\x01" * 3000, b'"\\' * 700, b"\xff" * 60_000, "é".encode() * 9000, b""]
)
def test_a_page_is_cut_by_what_it_takes_as_it_is_written(spoken: Format, descending: bool, body: bytes) -> None:
    rows = 9000 if len(body) < 100 else 700
    table = page_of([body] * rows)
    if descending:
        table = table.take(list(range(rows))[::-1])
    holes = [(seq, seq, "void") for seq in range(1, rows, 2)]
    found = Page(table, holes, 1, rows, None)
    kept, said, following = cut(found, descending, PAGE_BYTES_MAX, spoken.texts_only)
    item = PageItem(1, "c", live_messages(message_rows(kept), spoken.texts_only), said, 1, 1, following)
    size = len(spoken.encode([item]))
    assert kept.num_rows < rows
    assert PAGE_BYTES_MAX // 3 < size <= PAGE_BYTES_MAX + 200, (size, kept.num_rows)
