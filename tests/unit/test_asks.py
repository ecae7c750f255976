"""Asks over a connection: answers, keys, broken and late ones."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from imray.rpc.asks import AskClient, AskServer, Door, NoAnswerError
from tests.faults.process import until


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture
def server(gate: threading.Event) -> Iterator[AskServer]:
    def answer(what: str, *more: Any) -> Any:
        if what == "wait":
            assert gate.wait(10)
        return what, more

    made = AskServer("127.0.0.1", answer)
    yield made
    gate.set()
    made.end()


def test_many_ask(server: AskServer) -> None:
    clients = [AskClient(server.door) for _ in range(5)]
    for n in range(3):
        assert [c.ask(5, "a", n, i) for i, c in enumerate(clients)] == [("a", (n, i)) for i in range(5)]
    until(lambda: server.answered == 15, "all answers are counted")
    assert server.cpu_s > 0
    for c in clients:
        c.close()


def test_a_wrong_key(server: AskServer) -> None:
    with pytest.raises(NoAnswerError):
        AskClient(replace(server.door, key=b"x" * 32))
    client = AskClient(server.door)
    assert client.ask(5, "still") == ("still", ())
    client.close()


def test_one_that_stops_in_the_middle_holds_up_nobody(server: AskServer) -> None:
    with socket.create_connection((server.door.host, server.door.port)):
        client = AskClient(server.door)
        assert client.ask(5, "a") == ("a", ())
        client.close()


def test_a_late_answer_is_not_taken_for_the_next(server: AskServer, gate: threading.Event) -> None:
    client = AskClient(server.door)
    with pytest.raises(NoAnswerError, match="no answer"):
        client.ask(0.05, "wait")
    gate.set()
    with pytest.raises(NoAnswerError):
        client.ask(5, "next")
    again = AskClient(server.door)
    assert again.ask(5, "next") == ("next", ())
    again.close()


def test_the_end(server: AskServer) -> None:
    client = AskClient(server.door)
    assert client.ask(5, "a") == ("a", ())
    server.end()
    with pytest.raises(NoAnswerError):
        client.ask(5, "b")
    with pytest.raises(NoAnswerError):
        AskClient(server.door)


def _threads() -> int:
    return sum(thread.name == "ask" for thread in threading.enumerate())


def test_silent_connections_get_few_threads_and_not_for_long() -> None:
    before = _threads()
    server = AskServer("127.0.0.1", lambda *what: what, handshake_s=0.4, connections_max=8)
    with contextlib.ExitStack() as open_ones:
        friend = AskClient(server.door)
        for _ in range(200):
            open_ones.enter_context(socket.create_connection((server.door.host, server.door.port)))
        until(lambda: _threads() <= before + 8, "they have few threads", 5)
        late = AskClient(server.door)
        assert late.ask(5, "late") == ("late",)
        assert friend.ask(5, "friend") == ("friend",)
        # threads of other tests may end meanwhile
        until(lambda: _threads() <= before + 2, "who does not show the key is closed", 20)
        assert late.ask(5, "late") == ("late",)
        for client in (friend, late):
            client.close()
    server.end()
    until(lambda: _threads() == before, "no thread is left", 5)


def test_friends_are_not_put_out_by_one_too_many() -> None:
    server = AskServer("127.0.0.1", lambda *what: what, connections_max=2)
    friends = [AskClient(server.door) for _ in range(2)]
    until(lambda: [f.ask(5, "a") for f in friends] == [("a",)] * 2, "both are friends", 5)
    with pytest.raises(NoAnswerError, match="no connection"):
        AskClient(server.door)
    assert [f.ask(5, "b") for f in friends] == [("b",)] * 2
    for client in friends:
        client.close()
    server.end()


def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        door = Door("127.0.0.1", silent.getsockname()[1], b"x" * 32)
        with pytest.raises(NoAnswerError, match="no connection"):
            AskClient(door, handshake_s=0.2)
