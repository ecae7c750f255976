"""Client message ids: three notations, one meaning."""

from __future__ import annotations

import base64
import contextlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imray.core.errors import InvalidError
from imray.core.ids import format_client_msg_id, parse_client_msg_id

RAW = bytes.fromhex("0190b0f26f2e7c3a9d270242ac120002")
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(raw: bytes) -> str:
    value = int.from_bytes(raw, "big")
    return "".join(CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


@given(st.binary(min_size=16, max_size=16))
def test_every_notation_gives_the_same_bits(raw: bytes) -> None:
    text = str(uuid.UUID(bytes=raw))
    assert format_client_msg_id(raw) == text
    standard, url_safe = base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()
    notations = [text, text.upper(), raw.hex(), raw.hex().upper(), ulid(raw), ulid(raw).lower()]
    notations += [standard, standard[:22], url_safe, url_safe[:22]]
    for notation in notations:
        assert parse_client_msg_id(notation) == raw


def test_a_ulid_of_its_specification() -> None:
    assert parse_client_msg_id("01ARZ3NDEKTSV4RRFFQ69G5FAV").hex() == "01563e3ab5d3d6764c61efb99302bd5b"


def test_the_letters_that_crockford_reads_as_digits() -> None:
    assert parse_client_msg_id("0" * 25 + "O") == parse_client_msg_id("0" * 26)
    assert parse_client_msg_id("0" * 25 + "l") == parse_client_msg_id("0" * 25 + "1")
    assert parse_client_msg_id("0" * 25 + "I") == parse_client_msg_id("0" * 25 + "1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "0190b0f2-6f2e-7c3a-9d27-0242ac12000",  # 35 characters
        "0190b0f2-6f2e-7c3a-9d27-0242ac12000g",
        "0190b0f26-f2e-7c3a-9d27-0242ac120002",  # a hyphen out of place
        "0190b0f2 6f2e 7c3a 9d27 0242ac120002",
        "0190b0f2-6f2e-7c3a-9d27-0242ac12 002",  # bytes.fromhex would skip the space
        "0190b0f26f2e7c3a9d270242ac12 002",
        " 190b0f26f2e7c3a9d270242ac120002",
        "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",  # a ULID of more than 128 bits
        "0000000000000000000000000U",  # not in Crockford's alphabet
        "AZCw8m8ufDqdJwJCrBIAAh",  # base64 whose padding bits are not zero
        "AZCw8m8ufDqdJwJCrBIAAgAA",  # 24 characters, 18 bytes
        "AZCw8m8ufDqdJwJCrBIA*g",
        "AZCw8m8ufDqdJwJCrBIA=g==",
        "١" * 32,
        "\ud800" * 22,
    ],
)
def test_anything_else_is_refused_with_help(text: str) -> None:
    with pytest.raises(InvalidError, match="a client_msg_id is 128 bit"):
        parse_client_msg_id(text)


@given(st.text(max_size=40))
def test_text_is_16_bytes_or_invalid(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert len(parse_client_msg_id(text)) == 16


def test_the_format_is_the_uuid_notation() -> None:
    assert format_client_msg_id(RAW) == "0190b0f2-6f2e-7c3a-9d27-0242ac120002"
