"""The bounds that the OpenAPI document states are those that the code enforces."""

from __future__ import annotations

import base64
import re

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from api import docs
from api.checks import whole
from api.schemas import CLIENT_MSG_ID_PATTERN, TEXT_PATTERN
from imray.core.errors import InvalidError
from imray.core.ids import parse_client_msg_id
from imray.core.routing import check_text
from imray.settings import Settings

_CLIENT_MSG_ID = re.compile(CLIENT_MSG_ID_PATTERN)
_TEXT = re.compile(TEXT_PATTERN)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def _ulid(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    return "".join(_CROCKFORD[number >> 5 * i & 31] for i in reversed(range(26)))


def _is_id(text: str) -> bool:
    try:
        parse_client_msg_id(text)
    except InvalidError:
        return False
    return True


@st.composite
def _near_ids(draw: st.DrawFn) -> str:
    """Ids in every notation, most with a few characters changed."""
    raw = draw(st.binary(min_size=16, max_size=16))
    h = raw.hex()
    notations = [
        h,
        f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}",
        _ulid(raw),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode()[:22],
    ]
    characters = list(draw(st.sampled_from(notations)))
    for at in draw(st.lists(st.integers(0, len(characters) - 1), max_size=2)):
        characters[at] = draw(st.sampled_from("0189AFGIOQUVZafgiloquwz+/-_= \u0660"))
    return "".join(characters)


@given(_near_ids())
def test_the_pattern_of_an_id_is_what_the_parser_takes(text: str) -> None:
    assert (_CLIENT_MSG_ID.fullmatch(text) is not None) is _is_id(text)


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_the_pattern_of_a_text_is_what_the_check_takes(text: str) -> None:
    try:
        check_text(text, "text", 80)
        good = True
    except InvalidError:
        good = False
    assert (_TEXT.fullmatch(text) is not None) is good


@pytest.mark.parametrize("value", [4, 4.0, -0.0, 4e15])
def test_whole_numbers_are_taken_in_any_notation(value: float) -> None:
    assert whole(value, "n") == value
    assert type(whole(value, "n")) is int


def test_a_fraction_is_no_whole_number() -> None:
    with pytest.raises(InvalidError, match="not a whole number"):
        whole(4.5, "n")


def test_bounds_that_settings_decide_are_in_the_document() -> None:
    app = FastAPI()
    docs.install(app, Settings(body_bytes_max=7, batch_messages_max=3))
    schemas = app.openapi()["components"]["schemas"]
    assert schemas["SendRequest"]["properties"]["body"]["maxLength"] == 7
    assert schemas["BatchMessage"]["properties"]["body"]["maxLength"] == 7
    assert schemas["BatchRequest"]["properties"]["messages"]["maxItems"] == 3
