"""Arguments of the live client: what the server could only refuse is refused before anything is written."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from api import auth, checks, live_formats, live_work
from imray.client import AsyncClient, AsyncLive, Client, InvalidError, Live, Outgoing
from imray.client import arguments as bounds
from imray.client.calls import fields_of
from imray.client.wire import environment
from imray.core.pages import SEQ_MAX

Call: TypeAlias = Callable[[Any], Any]
_URL = "http://127.0.0.1:9"

BAD: dict[str, tuple[Call, str]] = {
    "follow after=-1": (
        lambda live: live.follow("tea", -1),
        "after is -1: a whole number from 0 to 9223372036854775807",
    ),
    "follow after=2**63": (lambda live: live.follow("tea", SEQ_MAX + 1), "after is 9223372036854775808"),
    "follow after=1.5": (lambda live: live.follow("tea", 1.5), "after is 1.5"),
    "follow after=True": (lambda live: live.follow("tea", True), "after is True"),
    "follow after='3'": (lambda live: live.follow("tea", "3"), "after is '3'"),
    "follow None": (lambda live: live.follow(None), "conv_id is None: text"),
    "watch after='3'": (lambda live: live.watch("tea", "3"), "after is '3'"),
    "watch 5": (lambda live: live.watch(5), "conv_id is 5: text"),
    "pull after=-1": (lambda live: live.pull("tea", after=-1), "after is -1"),
    "pull after=None": (lambda live: live.pull("tea", after=None), "after is None"),
    "pull order": (lambda live: live.pull("tea", order="foo"), "order is 'foo': asc or desc"),
    "pull order=[]": (lambda live: live.pull("tea", order=[]), "order is"),
    "pull limit='x'": (lambda live: live.pull("tea", limit="x"), "limit is 'x': a whole number from 1"),
    "pull limit=0": (lambda live: live.pull("tea", limit=0), "limit is 0"),
    "pull before=0": (lambda live: live.pull("tea", before=0), "before is 0: a whole number from 1"),
    "pull topic=5": (lambda live: live.pull("tea", topic=5), "topic is 5: text"),
    "pull topic=''": (lambda live: live.pull("tea", topic=""), "topic has 0 bytes"),
    "pull None": (lambda live: live.pull(None), "conv_id is None"),
    "read -1": (lambda live: live.read("tea", -1), "seq is -1"),
    "read 1.0": (lambda live: live.read("tea", 1.0), "seq is 1.0"),
    "send None": (lambda live: live.send(None, "x"), "conv_id is None"),
    "send bytes": (lambda live: live.send("tea", b"x"), "body must be str"),
    "send surrogate": (lambda live: live.send("tea", "\ud800"), "body is not valid Unicode"),
    "send client_ts='abc'": (lambda live: live.send("tea", "x", client_ts="abc"), "client_ts is 'abc': a whole number"),
    "send client_ts=2**53": (lambda live: live.send("tea", "x", client_ts=2**53), "from 0 to 9007199254740991"),
    "send topic=5": (lambda live: live.send("tea", "x", topic=5), "topic is 5: text"),
    "send topic long": (lambda live: live.send("tea", "x", topic="ü" * 65), "topic has 130 bytes"),
    "send content_type=b''": (lambda live: live.send("tea", "x", content_type=b""), "content_type is b''"),
    "send sender=7": (lambda live: live.send("tea", "x", sender=7), "sender is 7"),
    "send id=5": (lambda live: live.send("tea", "x", client_msg_id=5), "client_msg_id"),
    "signal None": (lambda live: live.signal(None, "k"), "conv_id is None"),
    "signal kind=''": (lambda live: live.signal("tea", ""), "kind has 0 bytes"),
    "signal kind=5": (lambda live: live.signal("tea", 5), "kind is 5"),
    "signal kind long": (lambda live: live.signal("tea", "k" * 33), "kind has 33 bytes"),
    "signal object": (lambda live: live.signal("tea", "k", object()), "data"),
    "signal large": (lambda live: live.signal("tea", "k", "x" * 1023), "data has 1025 bytes: at most 1024"),
    "signal int": (lambda live: live.signal("tea", "k", 2**70), "data"),
}


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


async def asked(call: Call, live: AsyncLive) -> None:
    """Call it, and wait where it is to be waited for."""
    answer = call(live)
    if inspect.isawaitable(answer):
        await answer


@pytest.mark.parametrize("name", list(BAD))
async def test_it_is_refused_before_anything_is_written(name: str) -> None:
    call, says = BAD[name]
    async with AsyncLive(_URL, "t") as live:
        with pytest.raises(InvalidError) as e:
            await asked(call, live)
        assert says in str(e.value)
        assert live._driver._ticker is None, "a connection was made"


async def test_data_that_nobody_could_read_is_refused() -> None:
    async with AsyncLive(_URL, "t") as live:
        with pytest.raises(InvalidError, match="data"):
            live.signal("tea", "k", nested(100_000))


def test_what_is_long_is_not_said_whole() -> None:
    with pytest.raises(InvalidError) as e:
        bounds.check_number("x" * 1_000_000, "after", 0, 1)
    assert len(str(e.value)) < 200


@pytest.mark.parametrize("make", [AsyncClient, AsyncLive, Client, Live])
@pytest.mark.parametrize("token", ["", "a b", 5, b"t"])
def test_a_token_that_can_be_none_is_refused(make: Any, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMRAY_TOKEN", "t")
    with pytest.raises(InvalidError, match="token"):
        make(_URL, token)


def test_a_message_is_taken_at_its_bounds() -> None:
    message = Outgoing(
        conv_id="tea",
        body="ü",
        content_type="x" * bounds.CONTENT_TYPE_BYTES_MAX,
        topic="x" * bounds.TOPIC_BYTES_MAX,
        client_ts=bounds.CLIENT_TS_MAX,
        sender="x" * bounds.SENDER_BYTES_MAX,
    )
    fields = fields_of(message, environment(1.0, None, lambda: 0.0, lambda: 0))
    assert fields | {"client_msg_id": None} == vars(message)


def test_bounds_are_those_of_the_server() -> None:
    assert bounds.TOPIC_BYTES_MAX == checks.TOPIC_BYTES_MAX
    assert bounds.CONTENT_TYPE_BYTES_MAX == checks.CONTENT_TYPE_BYTES_MAX
    assert bounds.CLIENT_TS_MAX == checks.CLIENT_TS_MAX
    assert bounds.SENDER_BYTES_MAX == auth.SENDER_BYTES_MAX
    assert bounds.KIND_BYTES_MAX == live_work._KIND_BYTES_MAX
    assert bounds.SIGNAL_BYTES_MAX == live_formats.SIGNAL_BYTES_MAX
