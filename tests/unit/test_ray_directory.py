"""The directory over Ray: names lead to endpoints, remembered until forgotten; every failure is no answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from imray.core.routing import log_of
from imray.deploy import directory
from imray.deploy.directory import RayDirectory
from imray.rpc.directory import HISTORY, log_of_reader
from imray.rpc.endpoint import Endpoint, NoAnswerError


class Actors:
    """Stands where Ray would: what each name's actor answers; an error is raised instead."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []

    def get_actor(self, name: str, namespace: str) -> Any:
        assert namespace == "test"
        if name not in self.answers:
            raise ValueError(f"Failed to look up actor with name {name!r}.\nA hint of Ray's")

        async def endpoint() -> Any:
            self.asked.append(name)
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                await asyncio.Event().wait()
            return answer

        return SimpleNamespace(endpoint=SimpleNamespace(remote=endpoint))


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    made = Actors()
    monkeypatch.setattr(directory.ray, "get_actor", made.get_actor)
    return made


@pytest.mark.parametrize(
    ("log", "name"),
    [
        (3, "shard-0003"),
        (log_of(3, 12), "partition-0003-12"),
        (HISTORY, "history"),
        (log_of_reader(0), "history"),
        (log_of_reader(2), "history-2"),
    ],
)
async def test_each_log_has_its_actor(actors: Actors, log: int, name: str) -> None:
    actors.answers[name] = Endpoint("127.0.0.1", 1, b"k")
    assert await RayDirectory("test").find(log, 5) == actors.answers[name]


async def test_an_answer_is_remembered_until_it_is_forgotten(actors: Actors) -> None:
    old = actors.answers["shard-0000"] = Endpoint("127.0.0.1", 1, b"k")
    known = RayDirectory("test")
    assert [await known.find(0, 5), await known.find(0, 5)] == [old, old]
    new = actors.answers["shard-0000"] = Endpoint("127.0.0.1", 2, b"k")
    assert await known.find(0, 5) == old
    known.forget(0)
    known.forget(1)
    assert await known.find(0, 5) == new
    assert len(actors.asked) == 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (RayActorError(), "shard-0000: The actor"),
        (RayTaskError("endpoint", "a traceback", OSError("no such address")), "shard-0000: no such address"),
        (None, "shard-0000 did not say within 0.1 s"),
    ],
)
async def test_a_failure_is_no_answer_and_is_not_remembered(actors: Actors, answer: Any, told: str) -> None:
    actors.answers["shard-0000"] = answer
    known = RayDirectory("test")
    with pytest.raises(NoAnswerError, match=told):
        await known.find(0, 0.1)
    actors.answers["shard-0000"] = Endpoint("127.0.0.1", 1, b"k")
    assert await known.find(0, 5) == actors.answers["shard-0000"]


async def test_a_name_that_nobody_has_is_no_answer(actors: Actors) -> None:
    with pytest.raises(NoAnswerError) as raised:
        await RayDirectory("test").find(0, 5)
    assert "Failed to look up" in str(raised.value)
    assert "hint" not in str(raised.value)
