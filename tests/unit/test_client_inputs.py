"""What the client refuses before it asks anybody, where it finds the server, and the ids it makes."""

from __future__ import annotations

import uuid
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from imray.client import Client, InvalidError, RetryPolicy, UnavailableError, new_client_msg_id


def refuse_all(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was asked")


@pytest.mark.parametrize(
    ("conv_id", "body", "named"),
    [
        ("", "x", {}),
        ("x" * 129, "x", {}),
        ("a\n", "x", {}),
        ("\ud800", "x", {}),
        ("a", b"bytes", {}),
        ("a", "\ud800", {}),
        ("a", "x", {"client_msg_id": "no id"}),
        ("a", "x", {"topic": object()}),
    ],
)
def test_input_that_the_server_could_only_refuse(conv_id: str, body: Any, named: dict[str, Any]) -> None:
    client = Client("http://imray.test", transport=httpx.MockTransport(refuse_all))
    with pytest.raises(InvalidError):
        client.send(conv_id, body, **named)
    with pytest.raises(InvalidError):
        client.send_batch([{"conv_id": conv_id, "body": body, **named}])


def test_a_field_that_no_message_has() -> None:
    with pytest.raises(InvalidError, match="convid"):
        Client("http://imray.test").send_batch([{"convid": "a", "body": "x"}])


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMRAY_URL", "http://imray.test/behind/a/path")
    monkeypatch.setenv("IMRAY_TOKEN", "t0ken")
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"name": "imray", "version": "1", "cluster_id": "c", "shards": 8})

    Client(transport=httpx.MockTransport(answer)).version()
    assert str(asked[0].url) == "http://imray.test/behind/a/path/v1/version"
    assert asked[0].headers["authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("url", [None, "", "imray.test", "ftp://imray.test", "http://", "http://a:b:c"])
def test_no_server_is_named(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMRAY_URL", raising=False)
    with pytest.raises(InvalidError, match="url"):
        Client(url)


def test_a_token_that_cannot_be_one_is_not_shown() -> None:
    with pytest.raises(InvalidError) as e:
        Client("http://imray.test", "secret\n")
    assert "secret" not in str(e.value)


def test_the_deadline_must_be_positive() -> None:
    with pytest.raises(InvalidError):
        Client("http://imray.test", timeout_s=0)


@pytest.mark.parametrize(
    ("retry_after", "pause_s"),
    [
        ("7", 7),
        ("0.5", 0.5),
        (formatdate(1_000_008, usegmt=True), 8),
        ("-3", 0),
        ("nan", 0),
        ("inf", 0),
        ("soon", 0),
    ],
)
def test_retry_after_as_number_and_as_date(retry_after: str, pause_s: float) -> None:
    pauses_s: list[float] = []
    answers = [httpx.Response(503, headers={"retry-after": retry_after}), httpx.Response(404)]
    client = Client(
        "http://imray.test",
        retry=RetryPolicy(pause_s_min=0.001, pause_s_max=0.001),
        transport=httpx.MockTransport(lambda _: answers.pop(0)),
        sleep=pauses_s.append,
        unix_ms=lambda: 1_000_000_000,
    )
    with pytest.raises(InvalidError):
        client.head("a")
    assert pauses_s == [pytest.approx(pause_s, abs=0.001)]


def test_pauses_grow_to_their_maximum() -> None:
    now_s = 0.0
    pauses_s: list[float] = []

    def sleep(pause_s: float) -> None:
        nonlocal now_s
        now_s += pause_s + 0.01
        pauses_s.append(pause_s)

    client = Client(
        "http://imray.test",
        timeout_s=60,
        retry=RetryPolicy(pause_s_min=0.1, pause_s_max=1.0),
        transport=httpx.MockTransport(lambda _: httpx.Response(503)),
        sleep=sleep,
        clock_s=lambda: now_s,
    )
    with pytest.raises(UnavailableError, match="no answer within 60 s"):
        client.head("a")
    ceilings = [0.1, 0.2, 0.4, 0.8] + [1.0] * len(pauses_s)
    assert all(0 <= pause <= ceiling for pause, ceiling in zip(pauses_s, ceilings, strict=False))
    assert now_s <= 60.01
    assert max(pauses_s) > 0.5


def test_ids_are_uuids_of_version_7_that_sort_by_time() -> None:
    low, high = new_client_msg_id(1, b"\xff" * 10), new_client_msg_id(2, b"\0" * 10)
    assert low < high
    parsed = uuid.UUID(new_client_msg_id(0x0190B0F26F2E, b"\xff" * 10))
    assert (parsed.version, parsed.variant, parsed.int >> 80) == (7, uuid.RFC_4122, 0x0190B0F26F2E)
    assert len({new_client_msg_id(1, n.to_bytes(10, "big")) for n in range(1000)}) == 1000
