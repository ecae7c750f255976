"""Client message ids: 128 bits, written as UUID, ULID or base64; the same bits are the same id."""

from __future__ import annotations

import base64
import binascii

from imray.core.errors import InvalidError

ID_BYTES = 16
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CROCKFORD_VALUE = {c: i for i, c in enumerate(_CROCKFORD)}
_CROCKFORD_VALUE |= {c.lower(): i for c, i in list(_CROCKFORD_VALUE.items())}
_CROCKFORD_VALUE |= {"O": 0, "o": 0, "I": 1, "i": 1, "L": 1, "l": 1}
_HYPHENS = (8, 13, 18, 23)
_HELP = "a client_msg_id is 128 bit: a UUID (36 or 32 characters), a ULID (26) or base64 (22, or 24 with '==')"


def parse_client_msg_id(text: str) -> bytes:
    """The 16 bytes of an id in UUID, ULID (https://github.com/ulid/spec) or base64 (RFC 4648, both alphabets).

    The length decides the notation, so no text has two meanings.
    Raises InvalidError for anything else, non-zero padding bits included (two texts may not share bits by accident).
    """
    n = len(text)
    try:
        if n == 36:
            if all(text[i] == "-" for i in _HYPHENS):
                return _hex(text[:8] + text[9:13] + text[14:18] + text[19:23] + text[24:])
        elif n == 32:
            return _hex(text)
        elif n == 26:
            return _ulid(text)
        elif n in (22, 24):
            return _base64(text)
    except (ValueError, KeyError, binascii.Error) as e:
        raise InvalidError(f"client_msg_id {text!r} is not valid: {_HELP}") from e
    raise InvalidError(f"client_msg_id {text[:64]!r} of {n} characters is not valid: {_HELP}")


def format_client_msg_id(raw: bytes) -> str:
    """The UUID notation (lower case, hyphens) of 16 bytes."""
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def _hex(text: str) -> bytes:
    raw = bytes.fromhex(text)
    if len(raw) != ID_BYTES:  # bytes.fromhex skips white space
        raise ValueError("white space in a UUID")
    return raw


def _ulid(text: str) -> bytes:
    value = 0
    for c in text:
        value = value << 5 | _CROCKFORD_VALUE[c]
    if value >> 128:
        raise ValueError("a ULID starts with 0 to 7")
    return value.to_bytes(ID_BYTES, "big")


def _base64(text: str) -> bytes:
    if len(text) == 24 and not text.endswith("=="):
        raise ValueError("24 characters of base64 are 18 bytes")
    body = text[:22].replace("-", "+").replace("_", "/")
    raw = base64.b64decode(body + "==", validate=True)
    if len(raw) != ID_BYTES or base64.b64encode(raw)[:22] != body.encode():
        raise ValueError("padding bits are not zero")
    return raw
