"""The requests of `attacks`: each is refused, or costs what it costs; none may write."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

_BATCH = "/v1/messages:batch"
_JSON = "application/json"
_ARROW = "application/vnd.apache.arrow.stream"
_ID = "00000000-0000-7000-8000-00000000000a"


class Asked(NamedTuple):
    """A request as it is sent, and what it is called in the counts."""

    kind: str
    data: bytes


def request(
    method: str, path: str, token: str | None = None, body: bytes = b"", kind: str = _JSON, length: int | None = None
) -> bytes:
    """HTTP/1.1; `length`: what it says of its body, if that is not so."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if method == "POST":
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def page_of(history: str, token: str) -> bytes:
    """A page of the largest size, 32 MB of bodies."""
    return request("GET", f"/v1/conversations/{quote(history, safe='')}/messages?limit=10000", token)


def ready() -> Iterator[Asked]:
    """For ever."""
    return itertools.repeat(Asked("ready", request("GET", "/readyz")))


def hostile_tokens(seed: int, signed: list[str]) -> Iterator[Asked]:
    """For ever; no token comes twice but the signed ones, so that none is known."""
    for n in itertools.count():
        claims = {"sub": f"eve {seed} {n}", "exp": 4_000_000_000}
        tokens = {
            "unknown key": _token({"alg": "ES256", "kid": f"k {seed} {n}"}, claims),
            "wrong signature": _token({"alg": "ES256", "kid": "one"}, claims),
            "other kind": _token({"alg": "HS256", "kid": "one"}, claims),
            "nests": _token({"alg": "ES256", "kid": "one"}, "[" * 20_000),
            "signed": signed[n % len(signed)],
        }
        for kind, token in tokens.items():
            yield Asked(kind, request("GET", "/v1/version", token))


def _token(header: dict[str, Any], claims: dict[str, Any] | str) -> str:
    text = claims if isinstance(claims, str) else json.dumps(claims)
    parts = (json.dumps(header).encode(), text.encode(), os.urandom(64))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def arrow_bombs(token: str) -> Callable[[], Iterator[Asked]]:
    """Compressed ones, dictionaries, and rows that are only said to be there. The one of 8 MB costs its way, so it
    comes once in ten."""
    import pyarrow as pa

    rows = 10_000

    def messages(count: int, body: Any) -> Any:
        ids = pa.array([bytes(16)] * count, pa.binary(16))
        return pa.table({"conv_id": pa.array(["c"] * count).dictionary_encode(), "client_msg_id": ids, "body": body})

    def same(value: bytes) -> Any:
        return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [value])

    def stream(table: Any, times: int = 1, **options: Any) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            for _ in range(times):
                writer.write_table(table)
        return sink.getvalue().to_pybytes()

    # 60 parts of 32 MB: 1.9 GB, and this process never has them all
    squeezed = stream(messages(500, pa.array([bytes(65_000)] * 500)), 60, compression="zstd")
    nulls = pa.table({name: pa.nulls(10**9) for name in ("conv_id", "client_msg_id", "body")})
    small = {
        "compressed": squeezed,
        "dictionary": stream(messages(rows, same(b"x" * 60_000))),
        "nulls": stream(nulls),
    }
    asked = [Asked(kind, request("POST", _BATCH, token, data, _ARROW)) for kind, data in small.items()]
    large = request("POST", _BATCH, token, stream(messages(rows, same(b"x" * 8_000_000))), _ARROW)
    return lambda: itertools.cycle([*asked * 3, Asked("large dictionary", large)])


def bad_batches(token: str) -> Callable[[], Iterator[Asked]]:
    """Batches that are malformed as a whole or in one message; one with a message too many comes once in 17."""
    good = {"conv_id": "c", "client_msg_id": _ID, "body": "x"}
    wrong: list[dict[str, Any]] = [
        {"client_msg_id": "no id"},
        {"body": 5},
        {"body": None},
        {"conv_id": "x" * 129},
        {"conv_id": "a\nb"},
        {"client_ts": -1},
        {"sender": "not me"},
        {"nobody": "knows"},
        {"body": "x" * (64 * 1024 + 1)},
    ]
    texts = {
        **{f"wrong {at}": _batch([*[good] * 100, good | change]) for at, change in enumerate(wrong)},
        "empty": b"",
        "half": b'{"messages": [',
        "list": b"[]",
        "nests": b"[" * 50_000,
        "surrogate": _batch([good]).replace(b'"x"', b'"\\ud800"'),
        "bytes": _batch([good]).replace(b'"x"', b'"\xff"'),
        "many": _batch([good] * 10_001),
    }
    kinds = {kind: kind if not kind.startswith("wrong") else "wrong" for kind in texts}
    asked = [Asked(kinds[kind], request("POST", _BATCH, token, text)) for kind, text in texts.items()]
    asked.append(Asked("as arrow", request("POST", _BATCH, token, _batch([good]), _ARROW)))
    return lambda: itertools.cycle(asked)


def _batch(messages: list[dict[str, Any]]) -> bytes:
    return json.dumps({"messages": messages}).encode()
