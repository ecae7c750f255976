"""What callers may hold of a gateway at once, connections and memory, and that it costs the others nothing."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.support.door_client import MB, answer, get, healthy, post, push, refused
from tests.support.door_server import DoorServer
from tests.support.process import until


def _speak(raw: socket.socket) -> None:
    raw.sendall(post(b"abc"))
    assert answer(raw)[2] == b'{"bytes":3}'


def test_connections_of_one_address_are_bounded_and_cost_neither_the_others_nor_health() -> None:
    with DoorServer(connections_per_peer_max=20) as running, contextlib.ExitStack() as open_ones:
        held = [open_ones.enter_context(running.connect()) for _ in range(20)]
        for raw in held:
            _speak(raw)
        with running.connect() as raw:
            raw.sendall(post(b"x" * 200_000))
            problem = refused(raw)
            assert (problem["status"], problem["type"]) == (429, "urn:imray:problem:too-many")
        assert healthy(running)
        _speak(held[0])
        with running.connect(source="127.0.0.2") as raw:
            _speak(raw)
        held.pop().close()
        until(lambda: running.limits.connections == 19, "they are gone", 5)
        with running.connect() as raw:
            _speak(raw)


def test_connections_are_bounded_in_total_but_for_health() -> None:
    with DoorServer(connections_max=20) as running, contextlib.ExitStack() as open_ones:
        held = [open_ones.enter_context(running.connect(source=f"127.0.0.{at + 2}")) for at in range(20)]
        for raw in held:
            _speak(raw)
        for _ in range(200):
            open_ones.enter_context(running.connect())  # and say nothing
        assert healthy(running)
        until(lambda: len(running.server.server_state.connections) <= 20 + 64, "the oldest are closed", 5)
        with running.connect() as raw:
            raw.sendall(post(b"abc"))
            problem = refused(raw)
            assert (problem["status"], problem["type"]) == (503, "urn:imray:problem:busy")
        _speak(held[0])


@pytest.mark.parametrize("bound", ["connections_max", "connections_per_peer_max"])
def test_a_flood_of_silent_connections_keeps_nobody_out(bound: str) -> None:
    with DoorServer(**{bound: 30}) as running, contextlib.ExitStack() as open_ones:
        friend = open_ones.enter_context(running.connect())
        _speak(friend)
        for at in range(300):
            silent = open_ones.enter_context(running.connect())
            if at % 2:
                silent.sendall(b"GET / HTTP/1.1\r\n")
        until(lambda: len(running.server.server_state.connections) == 30, "the oldest make room", 5)
        assert healthy(running)
        _speak(friend)
        with running.connect() as raw:
            _speak(raw)


def test_requests_at_once_are_bounded_but_for_health() -> None:
    with DoorServer(requests_at_once_max=5) as running, contextlib.ExitStack() as open_ones:
        held = [open_ones.enter_context(running.connect()) for _ in range(5)]
        for raw in held:
            raw.sendall(post(b"abc", 6))
        until(lambda: len(running.server.server_state.tasks) == 5, "all are in work", 5)
        with running.connect() as raw:
            raw.sendall(post(b"abc"))
            status, headers, _ = answer(raw)
            assert (status, headers["content-type"]) == (503, "application/problem+json")
            assert headers["retry-after"] == "1"
            assert healthy(running)
            held[0].sendall(b"def")
            assert answer(held[0])[2] == b'{"bytes":6}'
            until(lambda: len(running.server.server_state.tasks) == 4, "its task has ended, too", 5)
            raw.sendall(post(b"abc"))
            assert answer(raw)[0] == 200


# memory


def test_unfinished_bodies_of_one_caller_are_bounded_and_cost_the_others_nothing() -> None:
    with DoorServer(flight_bytes_per_caller_max=4 * MB) as running, contextlib.ExitStack() as open_ones:
        held = [open_ones.enter_context(running.connect()) for _ in range(6)]
        for raw in held:
            raw.sendall(post(b"x" * 200_000, 2 * MB, "eve"))
            push(raw, b"x" * 100_000, 8)
        until(lambda: len(running.limits.callers()) == 2, "the subject pays", 5)
        with running.connect() as raw:
            raw.sendall(post(b"x" * 300_000, who="ada"))
            assert answer(raw)[2] == b'{"bytes":300000}'
        assert running.limits.bytes <= 4 * MB
        assert 1 <= sum(_was_refused(raw) for raw in held) <= 3
    until(lambda: running.limits.bytes == 0, "all is given back", 5)


def _was_refused(raw: socket.socket) -> bool:
    raw.settimeout(0.2)
    try:
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
    except TimeoutError:
        return False
    return True


def test_unread_answers_of_one_caller_are_bounded_and_cost_the_others_nothing() -> None:
    with DoorServer(flight_bytes_per_caller_max=40 * MB) as running, contextlib.ExitStack() as open_ones:
        held = [open_ones.enter_context(running.connect(4096)) for _ in range(6)]
        for raw in held:
            raw.sendall(get(15 * MB, "eve"))
        first = [raw.recv(12) for raw in held]
        assert first.count(b"HTTP/1.1 200") == 2
        assert first.count(b"HTTP/1.1 503") == 4
        assert running.limits.bytes == 30 * MB
        with running.connect() as raw:
            raw.sendall(get(15 * MB, "ada"))
            assert len(answer(raw)[2]) == 15 * MB
        for raw in held:
            raw.close()
        until(lambda: running.limits.bytes == 0, "all is given back", 5)
        until(lambda: running.limits.callers() == [], "nobody is remembered", 5)


def test_no_answer_is_made_before_the_one_before_it_is_read() -> None:
    with DoorServer() as running, running.connect(4096) as raw:
        raw.sendall(get(15 * MB) + get(5))
        until(lambda: running.limits.bytes == 15 * MB, "the first is made", 5)
        raw.sendall(get(15 * MB))
        assert len(answer(raw)[2]) == 15 * MB
        assert len(answer(raw)[2]) == 5
        until(lambda: running.limits.bytes == 15 * MB, "the third is made", 5)
        raw.sendall(get(6))
        assert running.limits.bytes == 15 * MB
        assert len(answer(raw)[2]) == 15 * MB
        assert len(answer(raw)[2]) == 6


def test_bytes_in_flight_are_bounded_in_total() -> None:
    with DoorServer(flight_bytes_max=40 * MB) as running, contextlib.ExitStack() as open_ones:
        held = [open_ones.enter_context(running.connect(4096)) for _ in range(6)]
        for at, raw in enumerate(held):
            raw.sendall(get(15 * MB, f"eve {at}"))
        assert [raw.recv(12) for raw in held].count(b"HTTP/1.1 200") == 2
        with running.connect() as raw:
            raw.sendall(post(b"abc"))
            assert answer(raw)[0] == 200


def test_a_caller_gets_its_answer_however_large_it_is() -> None:
    with DoorServer(flight_bytes_per_caller_max=MB) as running, running.connect() as raw:
        for _ in range(3):
            raw.sendall(get(5 * MB))
            assert len(answer(raw)[2]) == 5 * MB
        until(lambda: running.limits.bytes == 0, "it is read", 5)


def test_what_was_done_is_never_answered_by_a_refusal() -> None:
    with DoorServer() as running, contextlib.ExitStack() as open_ones:
        for _ in range(20):
            raw = open_ones.enter_context(running.connect())
            raw.sendall(post(b"x" * 2_000_000))
            assert answer(raw)[2] == b'{"bytes":2000000}'
        assert running.limits.bytes == 0
