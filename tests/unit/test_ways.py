"""The way of a send over a sub-topic and, where that gave no answer, its home shard: what the sender is told."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from fake_actors import SETTINGS, FakeRay, appended, fake_ray, refusal

from imray.cluster.backend import Backend
from imray.cluster.batcher import Send, record_batch
from imray.cluster.replies import Appended, Refusal, Refused
from imray.log.manifest import Manifest

HOME = "shard-0000"
TOPIC = "topic-0000-01"
HOT = appended(1, hot={"hot": 1})
CORRUPT = refusal(Refused.CORRUPT)

Sending = Callable[[Backend, Send], Awaitable[Appended | Refusal]]


@pytest.fixture
async def ray(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeRay]:
    with fake_ray(monkeypatch) as made:
        yield made


async def one(backend: Backend, send: Send) -> Appended | Refusal:
    return (await backend.send(send)).answer


async def many(backend: Backend, send: Send) -> Appended | Refusal:
    batch = record_batch([send])
    log = int(backend.ways(batch)[0])
    return (await backend.send_batches({log: batch}))[log]


both = pytest.mark.parametrize("sending", [one, many])


def message(conv_id: str = "hot") -> Send:
    return Send(conv_id, os.urandom(16), "ada", None, None, None, b"x")


async def learned(**settings: int) -> Backend:
    """A gateway that has heard from the home shard that "hot" is hot."""
    backend = Backend("test", Manifest("test", 1, 1), replace(SETTINGS, **settings))
    assert isinstance(await one(backend, message()), Appended)
    return backend


@both
async def test_a_sub_topic_that_refuses_to_serve_is_left_out_for_a_while(ray: FakeRay, sending: Sending) -> None:
    home = ray.actor(HOME, HOT)
    topic = ray.actor(TOPIC, CORRUPT, HOT)
    backend = await learned()
    assert isinstance(await sending(backend, message()), Appended)
    assert topic.ids() == home.ids()[1:]
    assert isinstance(await sending(backend, message()), Appended)
    assert (len(topic.batches), len(home.batches)) == (1, 3)
    ray.clock.now_s += SETTINGS.topic_pause_s
    assert isinstance(await sending(backend, message()), Appended)
    assert (len(topic.batches), len(home.batches)) == (2, 3)
