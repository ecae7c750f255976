"""The live side over real shards, feeds and history, all in one process: what a client hears is what was written."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from api.live_formats import JSON, MSGPACK, Format
from imray.engine.engine import Engine
from imray.settings import Settings
from tests.support.live_client import LiveClient, joined
from tests.support.live_system import LiveServer, token_of
from tests.support.local_system import LocalSystem, local_system

BOTH = pytest.mark.parametrize("spoken", [JSON, MSGPACK], ids=["json", "msgpack"])


class Real:
    """A gateway, and the system behind it."""

    system: LocalSystem
    server: LiveServer


@pytest.fixture
def real(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Real]:
    made = Real()

    @asynccontextmanager
    async def engine_of(_settings: Settings) -> AsyncIterator[Engine]:
        async with local_system(tmp_path / "data") as system:
            made.system = system
            yield system.engine()

    with LiveServer(tmp_path, engine_of) as made.server:
        yield made
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def message(ref: int, conv_id: str = "tea") -> dict[str, Any]:
    """A send."""
    return {
        "t": "send",
        "ref": ref,
        "conv_id": conv_id,
        "client_msg_id": f"0198c0de-0000-7000-8000-{ref:012}",
        "body": f"message {ref}",
    }


def acks(client: LiveClient, count: int) -> list[dict[str, Any]]:
    """So many."""
    found = [client.hear() for _ in range(count)]
    assert {item["t"] for item in found} == {"ack"}
    return found


def heard_up_to(client: LiveClient, seq: int, after: int) -> list[str]:
    """Bodies above `after` up to a number, with nothing left out and nothing twice."""
    bodies = []
    while after < seq:
        item = client.hear()
        assert (item["t"], item["after"]) == ("messages", after), item
        numbers = [one["conv_seq"] for one in item["messages"]]
        assert numbers == list(range(after + 1, item["upto"] + 1))
        assert item["holes"] == []
        bodies += [one["body"] for one in item["messages"]]
        after = item["upto"]
    return bodies


@BOTH
def test_what_one_sends_the_other_hears_in_order(real: Real, spoken: Format) -> None:
    with joined(real.server, "ada", spoken=spoken) as ada, joined(real.server, "bob", spoken=spoken) as bob:
        told = bob.ask({"t": "subscribe", "ref": 1, "conv_id": "tea", "after": 0})
        assert (told["after"], told["live"], told["stable_seq"]) == (0, 1, 0)
        ada.say(*(message(ref) for ref in range(1, 51)))
        assert [ack["conv_seq"] for ack in acks(ada, 50)] == list(range(1, 51))
        for ref in range(51, 71):
            ada.say(message(ref))
        assert sorted(ack["conv_seq"] for ack in acks(ada, 20)) == list(range(51, 71))
        assert heard_up_to(bob, 70, 0) == [f"message {ref}" for ref in range(1, 71)]


@BOTH
def test_a_retry_is_the_same_message_and_another_payload_is_none(real: Real, spoken: Format) -> None:
    with joined(real.server, spoken=spoken) as ada:
        first = ada.ask(message(1))
        ada.say(message(1), message(2), {**message(1), "body": "other", "ref": 9})
        told = {item["ref"]: item for item in (ada.hear() for _ in range(3))}
        assert told[1] == {**first, "duplicate": True, "stable_seq": told[1]["stable_seq"]}
        assert (told[2]["conv_seq"], told[2]["duplicate"]) == (2, False)
        assert (told[9]["status"], told[9]["conv_seq"]) == (409, 1)
        assert ada.ask({**message(1), "body": "other", "ref": 7})["status"] == 409
        assert ada.ask(message(1))["duplicate"]


@BOTH
def test_who_comes_late_catches_up_and_who_pulls_reads_the_same(real: Real, spoken: Format) -> None:
    with joined(real.server, "ada", spoken=spoken) as ada:
        ada.say(*(message(ref) for ref in range(1, 301)))
        acks(ada, 300)
        with joined(real.server, "bob", spoken=spoken) as bob:
            assert bob.ask({"t": "subscribe", "ref": 1, "conv_id": "tea", "after": 10})["after"] == 10
            ada.say(message(301))
            heard = heard_up_to(bob, 301, 10)
        assert heard == [f"message {ref}" for ref in range(11, 302)]
        acks(ada, 1)
        page = ada.ask({"t": "pull", "ref": 2, "conv_id": "tea", "after": 10, "limit": 200})
        assert [one["body"] for one in page["messages"]] == heard[:200]
        assert page["next"] == 210
        last = ada.ask({"t": "pull", "ref": 3, "conv_id": "tea", "order": "desc", "limit": 2})
        assert [one["conv_seq"] for one in last["messages"]] == [301, 300]


def test_a_shard_that_is_replaced_loses_nothing_for_who_listens(real: Real) -> None:
    with joined(real.server, "ada") as ada, joined(real.server, "bob") as bob:
        bob.ask({"t": "subscribe", "ref": 1, "conv_id": "tea", "after": 0})
        ada.say(message(1))
        acks(ada, 1)
        shard = real.server.engine.shard_of("tea")
        real.server.wait(real.system.replace(shard))
        ada.say(*(message(ref) for ref in range(2, 31)))
        acks(ada, 29)
        assert heard_up_to(bob, 30, 0) == [f"message {ref}" for ref in range(1, 31)]


def _create(real: Real, **roles: str) -> None:
    members = [{"user": user, "role": role} for user, role in roles.items()]
    answer = _http(real, "PUT", "/v1/conversations/club", "olga", {"public": False, "members": members})
    assert answer.status_code == 201, answer.text


def _http(real: Real, method: str, path: str, sender: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token_of(sender)}"}
    return httpx.request(method, f"{real.server.http}{path}", json=body, headers=headers, timeout=20)


def test_members_hear_and_who_is_removed_is_told_so_in_order(real: Real) -> None:
    _create(real, mina="member", rhea="reader")
    with (
        joined(real.server, "mina") as mina,
        joined(real.server, "rhea") as rhea,
        joined(real.server, "stan") as stan,
    ):
        for refused in (
            stan.ask({"t": "subscribe", "ref": 1, "conv_id": "club"}),
            stan.ask(message(1, "club")),
            stan.ask({"t": "pull", "ref": 2, "conv_id": "club"}),
            stan.ask({"t": "read", "ref": 3, "conv_id": "club", "seq": 1}),
            rhea.ask(message(2, "club")),
        ):
            assert (refused["t"], refused["status"], refused["kind"]) == ("error", 403, "forbidden")
        for client in (mina, rhea):
            assert client.ask({"t": "subscribe", "ref": 4, "conv_id": "club", "after": 0})["t"] == "subscribed"
        typing = {"t": "signal", "ref": 5, "conv_id": "club", "kind": "typing", "data": {"on": True}}
        assert rhea.ask(typing)["status"] == 403
        assert mina.ask(typing) == {"t": "ok", "ref": 5}
        assert rhea.hear()["data"] == {"on": True}
        assert mina.ask(message(3, "club"))["conv_seq"] == 1
        assert heard_up_to(rhea, 1, 0) == ["message 3"]
        assert mina.hear()["upto"] == 1
        assert rhea.ask({"t": "read", "ref": 6, "conv_id": "club", "seq": 1}) == {"t": "ok", "ref": 6}
        removed = _http(real, "POST", "/v1/conversations/club/members:remove", "olga", {"users": ["rhea"]})
        assert removed.status_code == 200, removed.text
        assert rhea.hear() == {"t": "ended", "conv_id": "club", "after": 1, "reason": "removed"}
        assert mina.ask(message(4, "club"))["conv_seq"] == 2


def test_events_follow_a_conversation_and_go_on_where_they_were(real: Real) -> None:
    url = f"{real.server.http}/v1/conversations/tea/events"
    headers = {"Authorization": f"Bearer {token_of('eve')}"}
    with joined(real.server, "ada") as ada:
        ada.say(*(message(ref) for ref in range(1, 6)))
        acks(ada, 5)
        bodies: list[str] = []
        last = "0"
        for upto in (5, 8):
            with httpx.stream("GET", url, headers={**headers, "Last-Event-ID": last}, timeout=10) as answer:
                if upto == 8:
                    ada.say(*(message(ref) for ref in range(6, 9)))
                for line in answer.iter_lines():
                    if line.startswith("id: "):
                        last = line[4:]
                    elif line.startswith("data: "):
                        bodies += [one["body"] for one in orjson.loads(line[6:])["messages"]]
                        if int(last) == upto:
                            break
        assert bodies == [f"message {ref}" for ref in range(1, 9)]
