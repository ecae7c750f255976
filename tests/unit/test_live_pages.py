"""Pages over a live connection: cut so that a client can take one in a frame, with nothing lost at the cut."""

from __future__ import annotations

from typing import Any

import pytest

from api.live_pages import cut
from imray.core.pages import Page
from tests.support.api_system import page_of


def page(sizes: list[int], holes: list[tuple[int, int, str]], following: int | None, descending: bool) -> Page[Any]:
    """Messages with the numbers 1, 2, ..., with bodies of these sizes."""
    table = page_of([b"x" * size for size in sizes])
    if descending:
        table = table.take(list(range(len(sizes)))[::-1])
    return Page(table, holes, 1, len(sizes), following)


def test_a_page_that_fits_is_told_as_it_is() -> None:
    table, holes, following = cut(page([10, 10], [(3, 5, "void")], 5, False), False, 20)
    assert table.num_rows == 2
    assert [(h.low, h.high) for h in holes] == [(3, 5)]
    assert following == 5


@pytest.mark.parametrize("descending", [False, True])
def test_a_large_page_goes_on_where_it_was_cut(descending: bool) -> None:
    found = page([10] * 6, [(0, 0, "void"), (7, 9, "void")], None, descending)
    table, holes, following = cut(found, descending, 35)
    assert table.column("conv_seq").to_pylist() == ([6, 5, 4] if descending else [1, 2, 3])
    assert following == (4 if descending else 3)
    assert [(h.low, h.high) for h in holes] == ([(7, 9)] if descending else [(0, 0)])


def test_one_message_goes_however_large_it_is() -> None:
    table, _, following = cut(page([50, 10], [], None, False), False, 35)
    assert (table.num_rows, following) == (1, 1)
    table, _, following = cut(page([50], [], None, False), False, 35)
    assert (table.num_rows, following) == (1, None)
    table, _, following = cut(page([], [(1, 4, "void")], 4, False), False, 35)
    assert (table.num_rows, following) == (0, 4)
