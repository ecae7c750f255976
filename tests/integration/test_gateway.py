"""The gateway over a real system: every answer that its OpenAPI document promises."""

from __future__ import annotations

import base64
import os
import select
import socket
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow as pa
import pytest
from conftest import System

from api.auth import make_token
from imray.core.ids import format_client_msg_id

ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def http(system: System) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {system.token}"}
    with httpx.Client(base_url=system.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def conv() -> str:
    return f"test {uuid.uuid4()}"


def path(conv_id: str) -> str:
    return f"/v1/conversations/{quote(conv_id, safe='')}/messages"


def send(http: httpx.Client, conv_id: str, body: str, **more: Any) -> httpx.Response:
    return http.post(path(conv_id), json={"client_msg_id": str(uuid.uuid4()), "body": body, **more})


def ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_a_send_a_retry_and_a_conflict(http: httpx.Client, conv: str) -> None:
    message = {"client_msg_id": str(uuid.uuid4()), "body": "hä?\n😀", "topic": "t", "content_type": "text/x"}
    first = http.post(path(conv), json=message)
    assert first.status_code == 201
    answer = first.json()
    assert (answer["conv_id"], answer["conv_seq"], answer["duplicate"], answer["stable_seq"]) == (conv, 1, False, 1)
    assert answer["client_msg_id"] == message["client_msg_id"]
    assert send(http, conv, "another").json()["conv_seq"] == 2
    again = http.post(path(conv), json=message)
    assert again.status_code == 200
    assert again.json() == {**answer, "duplicate": True, "stable_seq": 2}
    other = http.post(path(conv), json={**message, "body": "other"})
    assert other.status_code == 409
    assert other.headers["content-type"] == "application/problem+json"
    assert other.json()["conv_seq"] == 1


def test_the_same_bits_are_the_same_id(http: httpx.Client, conv: str) -> None:
    raw = uuid.uuid4()
    texts = [str(raw), raw.hex, base64.b64encode(raw.bytes).decode(), base64.urlsafe_b64encode(raw.bytes).decode()[:22]]
    answers = [http.post(path(conv), json={"client_msg_id": t, "body": "x"}) for t in texts]
    assert [a.status_code for a in answers] == [201, 200, 200, 200]
    assert {a.json()["conv_seq"] for a in answers} == {1}


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"client_msg_id": "nonsense"}, 422, "client_msg_id"),
        ({"client_msg_id": 7}, 422, "client_msg_id"),
        ({"body": None}, 422, "body"),
        ({"nobody": "knows"}, 422, "nobody"),
        ({"topic": ""}, 422, "topic"),
        ({"topic": "t" * 129}, 422, "topic"),
        ({"content_type": "x" * 256}, 422, "content_type"),
        ({"client_ts": -1}, 422, "client_ts"),
        ({"client_ts": 2**53}, 422, "client_ts"),
        ({"sender": "\n"}, 422, "sender"),
        ({"body": "x" * (64 * 1024 + 1)}, 413, "65536"),
        ({"body": "ä" * (32 * 1024 + 1)}, 413, "65536"),
    ],
)
def test_bad_messages_write_nothing(
    http: httpx.Client, conv: str, change: dict[str, Any], status: int, word: str
) -> None:
    good = {"client_msg_id": str(uuid.uuid4()), "body": "x"}
    single = http.post(path(conv), json={**good, **change})
    batch = http.post("/v1/messages:batch", json={"messages": [{"conv_id": conv, **good, **change}]})
    for answer in (single, batch):
        assert answer.status_code == status
        assert word in answer.json()["detail"]
        assert answer.json()["type"].startswith("urn:imray:problem:")
    assert http.get(path(conv)[: -len("/messages")]).json()["conv_seq"] == 0


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"nonsense", b'{"client_msg_id":"\xff"}', b'"x"'])
def test_bad_json(http: httpx.Client, conv: str, data: bytes) -> None:
    for url in (path(conv), "/v1/messages:batch"):
        answer = http.post(url, content=data, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
    assert http.get(path(conv)[: -len("/messages")]).json()["conv_seq"] == 0


def test_a_lone_surrogate_is_refused(http: httpx.Client, conv: str) -> None:
    data = b'{"client_msg_id":"%s","body":"\\ud800"}' % uuid.uuid4().hex.encode()
    answer = http.post(path(conv), content=data, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("conv_id", ["x" * 129, "ä" * 65, "a\nb", ""])
def test_bad_conversations(http: httpx.Client, conv_id: str) -> None:
    assert send(http, conv_id, "x").status_code in (404, 422)
    message = {"conv_id": conv_id, "client_msg_id": str(uuid.uuid4()), "body": "x"}
    assert http.post("/v1/messages:batch", json={"messages": [message]}).status_code == 422


def test_names_with_slashes_and_signs(http: httpx.Client) -> None:
    for name in (f"a/b {uuid.uuid4()}", f"x/messages{uuid.uuid4()}/messages", f"ä%2F?#{uuid.uuid4()}"):
        url = path(name)[: -len("/messages")]
        assert http.post(f"{url}/messages", json={"client_msg_id": uuid.uuid4().hex, "body": "x"}).status_code == 201
        assert http.get(url).json()["conv_id"] == name
        assert http.get(url).json()["conv_seq"] == 1
        assert len(http.get(f"{url}/messages").json()["messages"]) == 1
    assert http.get("/v1/conversations/a/b").status_code == 422


def test_too_large_is_refused_before_it_is_read(http: httpx.Client, conv: str, system: System) -> None:
    announced = http.post(path(conv), content=b"x" * 10_000_000, headers={"content-type": "application/json"})
    assert announced.status_code == 413
    head = f"POST {path(conv)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {system.token}\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", int(system.url.rsplit(":", 1)[1])), timeout=30) as raw:
        raw.sendall((head + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").encode())
        while not select.select([raw], [], [], 0)[0] and sent < 50_000_000:
            raw.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536
        assert b" 413 " in raw.recv(4096)
    assert sent < 50_000_000


def test_headers_are_bounded_and_health_needs_no_place(http: httpx.Client, system: System) -> None:
    answer = http.get("/v1/version", headers={"x-long": "x" * 70_000})
    assert (answer.status_code, answer.json()["type"]) == (431, "urn:imray:problem:too-large")
    open_ones = [socket.create_connection(("127.0.0.1", int(system.url.rsplit(":", 1)[1]))) for _ in range(1200)]
    assert http.get("/livez").status_code == 200
    assert http.get("/v1/version").status_code == 200
    for one in open_ones:
        one.close()


def test_too_many(http: httpx.Client, conv: str) -> None:
    messages = [{"conv_id": conv, "client_msg_id": uuid.uuid4().hex, "body": ""} for _ in range(10_001)]
    assert http.post("/v1/messages:batch", json={"messages": messages}).status_code == 413
    assert http.post("/v1/messages:batch", json={"messages": []}).status_code == 422


def test_tokens(system: System, conv: str) -> None:
    key = (system.data / "run" / "jwt.key").read_bytes()
    message = {"client_msg_id": uuid.uuid4().hex, "body": "x"}
    bad = [
        None,
        "Basic abc",
        "Bearer nonsense",
        "Bearer " + make_token(b"k" * 32, "eve", True, 60),
        "Bearer " + make_token(key, "late", True, -60),
        "Bearer " + make_token(key, "", True, 60),
    ]
    for authorization in bad:
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = httpx.post(system.url + path(conv), json=message, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(system.url + path(conv), headers=headers).status_code == 401
    plain = {"Authorization": "Bearer " + make_token(key, "bob", False, 60)}
    assert httpx.post(system.url + path(conv), json={**message, "sender": "ada"}, headers=plain).status_code == 403
    assert httpx.post(system.url + path(conv), json=message, headers=plain).status_code == 201
    page = httpx.get(system.url + path(conv), headers=plain).json()
    assert [m["sender"] for m in page["messages"]] == ["bob"]
    for health in ("/livez", "/readyz"):
        assert httpx.get(system.url + health).status_code == 200


def test_batches_keep_order_and_have_outcomes(http: httpx.Client, conv: str) -> None:
    ids = [uuid.uuid4().hex for _ in range(6)]
    convs = [conv, conv + "b"] * 3
    messages = [
        {"conv_id": c, "client_msg_id": i, "body": f"m{n}"} for n, (c, i) in enumerate(zip(convs, ids, strict=True))
    ]
    messages.append({**messages[0]})
    messages.append({**messages[1], "body": "changed"})
    answer = http.post("/v1/messages:batch", json={"messages": messages}).json()
    assert [r["status"] for r in answer["results"]] == [201] * 6 + [200, 409]
    assert [r["conv_seq"] for r in answer["results"]] == [1, 1, 2, 2, 3, 3, 1, 1]
    assert (answer["created"], answer["duplicates"], answer["failed"]) == (6, 1, 1)
    assert answer["results"][6]["offset"] == answer["results"][0]["offset"]
    page = http.get(path(conv)).json()
    assert [m["body"] for m in page["messages"]] == ["m0", "m2", "m4"]
    offsets = {tuple(r["offset"].values()) for r in answer["results"][:6]}
    assert len(offsets) == 6


def test_arrow_batches(http: httpx.Client, conv: str) -> None:
    ids = [os.urandom(16) for _ in range(5)]
    bodies = [b"plain", b"\xff\xfe not text", b"", "ä".encode(), b"x" * 65536]
    table = pa.table(
        {
            "body": pa.array(bodies, pa.binary()),
            "conv_id": pa.array([conv] * 5).dictionary_encode(),
            "client_msg_id": pa.array(ids, pa.binary(16)),
            "sender": ["a", "b", "a", "c", "a"],
            "client_ts": [None, 1, 2, 3, 4],
        }
    )
    answer = http.post("/v1/messages:batch", content=ipc(table), headers={"content-type": ARROW})
    assert answer.status_code == 200, answer.text
    with pa.ipc.open_stream(answer.content) as reader:
        outcomes = reader.read_all()
    assert outcomes["status"].to_pylist() == [201] * 5
    assert outcomes["conv_seq"].to_pylist() == [1, 2, 3, 4, 5]
    page = http.get(path(conv)).json()["messages"]
    read = [m["body"].encode() if "body" in m else base64.b64decode(m["body_base64"]) for m in page]
    assert read == bodies
    assert [m["sender"] for m in page] == ["a", "b", "a", "c", "a"]
    assert [m["client_ts"] for m in page] == [None, 1, 2, 3, 4]
    assert [m["client_msg_id"] for m in page] == [format_client_msg_id(i) for i in ids]


@pytest.mark.parametrize(
    ("columns", "status"),
    [
        ({"conv_id": ["c"], "client_msg_id": [b"short"], "body": ["x"]}, 422),
        ({"conv_id": ["c"], "client_msg_id": [uuid.uuid4().hex], "body": [None]}, 422),
        ({"conv_id": ["c"], "client_msg_id": [uuid.uuid4().hex], "body": [7]}, 422),
        ({"conv_id": ["c"], "client_msg_id": [uuid.uuid4().hex]}, 422),
        ({"conv_id": ["c"], "client_msg_id": [uuid.uuid4().hex], "body": ["x"], "more": [1]}, 422),
        ({"conv_id": [""], "client_msg_id": [uuid.uuid4().hex], "body": ["x"]}, 422),
        ({"conv_id": pa.array([], pa.string()), "client_msg_id": [], "body": []}, 422),
    ],
)
def test_bad_arrow_columns(http: httpx.Client, columns: dict[str, Any], status: int) -> None:
    answer = http.post("/v1/messages:batch", content=ipc(pa.table(columns)), headers={"content-type": ARROW})
    assert answer.status_code == status, answer.text


def test_broken_arrow_streams(http: httpx.Client, conv: str) -> None:
    table = pa.table({"conv_id": [conv], "client_msg_id": [uuid.uuid4().hex], "body": ["x" * 50]})
    good = ipc(table)
    for data in (b"", b"nonsense", good[:-40], good[: len(good) // 2], good[:100] + b"\xff" * 8 + good[108:]):
        answer = http.post("/v1/messages:batch", content=data, headers={"content-type": ARROW})
        assert answer.status_code in (400, 422), (len(data), answer.text)
    assert http.post("/v1/messages:batch", content=good, headers={"content-type": "text/csv"}).status_code == 415


def test_history_pages(http: httpx.Client, conv: str) -> None:
    for n in range(1, 8):
        assert send(http, conv, str(n)).status_code == 201
    seen: list[int] = []
    after: int | None = 0
    while after is not None:
        page = http.get(path(conv), params={"after": after, "limit": 3}).json()
        seen += [m["conv_seq"] for m in page["messages"]]
        after = page["next"]
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    newest = http.get(path(conv), params={"order": "desc", "limit": 2}).json()
    assert [m["body"] for m in newest["messages"]] == ["7", "6"]
    older = http.get(path(conv), params={"order": "desc", "limit": 9, "before": newest["next"]}).json()
    assert [m["body"] for m in older["messages"]] == ["5", "4", "3", "2", "1"]
    assert older["next"] is None
    assert (older["stable_seq"], older["holes"]) == (7, [])
    for bad in ({"after": -1}, {"limit": 0}, {"limit": 10**6}, {"order": "up"}, {"x": 1}, {"before": "a"}):
        assert http.get(path(conv), params=bad).status_code == 422


def test_the_document_is_complete(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert set(document["paths"]) >= {
        "/v1/conversations/{conv_id}/messages",
        "/v1/messages:batch",
        "/v1/conversations/{conv_id}",
        "/livez",
        "/readyz",
        "/v1/version",
    }
    text = str(document)
    schemas = document["components"]["schemas"]
    for part in text.split("'#/components/schemas/")[1:]:
        assert part.split("'")[0] in schemas
    operation = document["paths"]["/v1/conversations/{conv_id}/messages"]["post"]
    assert set(operation["responses"]) >= {"200", "201", "400", "401", "403", "409", "413", "422", "503", "504"}


def test_unknown_paths_are_problems(http: httpx.Client) -> None:
    assert http.get("/v2/x").json()["status"] == 404
    assert http.delete("/v1/messages:batch").json()["status"] == 405
