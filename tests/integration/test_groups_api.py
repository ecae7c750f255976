"""Hot groups as an operator and a reader meet them: command line, HTTP, status, one topic alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import httpx
import pytest
from conftest import System

from api.auth import make_token
from imray.core.errors import InvalidError

_DEADLINE_S = 60.0


def _imray(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imray.cli", *arguments, "--data", str(system.data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)


def test_hot_and_cold_by_command(system: System) -> None:
    with system.client() as client:
        assert client.send("party", "one", topic="a").conv_seq == 1
        hot = _imray(system, "hot", "party", "--topics", "2")
        assert (hot.returncode, hot.stdout.strip()) == (0, "party is written by 2 partitions"), hot.stderr
        sent = [client.send("party", f"{i}", topic="ab"[i % 2]) for i in range(10)]
        assert [s.conv_seq for s in sent] == list(range(2, 12))
        assert not any(s.duplicate for s in sent)
        status = _imray(system, "status")
        assert "hot groups:" in status.stdout
        (group,) = [g for s in json.loads(_imray(system, "status", "--json").stdout)["shards"] for g in s["hot"]]
        assert (group["conv_id"], group["topics"], group["head"], group["by_rate"]) == ("party", 2, 11, False)
        cold = _imray(system, "cold", "party", "--json")
        assert json.loads(cold.stdout) == {"conv_id": "party", "topics": 0}
        assert client.send("party", "last").conv_seq == 12


def test_one_topic_alone(system: System) -> None:
    with system.client() as client:
        client.send("talk", "first", topic="x")
        client.set_topics("talk", 3)
        for i in range(30):
            client.send("talk", f"{i}", topic="xyz"[i % 3])
        deadline = time.monotonic() + _DEADLINE_S
        while client.head("talk").stable_seq < 31:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # between two looks
        pages = list(client.iter_history("talk", topic="x", limit=4))
        found = [m for page in pages for m in page.messages]
        assert [m.conv_seq for m in found] == [1, *range(2, 32, 3)]
        assert {m.topic for m in found} == {"x"}
        down = [
            m.conv_seq for page in client.iter_history("talk", topic="y", limit=4, order="desc") for m in page.messages
        ]
        assert down == list(range(3, 32, 3))[::-1]


def test_who_may_and_what_is_refused(system: System) -> None:
    key = (system.data / "run" / "jwt.key").read_bytes().strip()
    url = f"{system.url}/v1/conversations/party/topics"
    mine = {"Authorization": f"Bearer {system.token}"}
    reader = {"Authorization": f"Bearer {make_token(key, 'ada', service=False, lifetime_s=60)}"}
    assert httpx.put(url, json={"topics": 2}).status_code == 401
    assert httpx.put(url, json={"topics": 2}, headers=reader).status_code == 403
    for wrong in ({"topics": -1}, {"topics": 100}, {"topics": "2"}, {}, {"topics": 2, "more": 1}):
        answer = httpx.put(url, json=wrong, headers=mine)
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    with system.client() as client, pytest.raises(InvalidError):
        client.set_topics("party", 1000)
