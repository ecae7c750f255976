"""How much and how long a connection may send and be silent. Each refusal is a problem document."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.door_client import HEAD, MB, answer, get, healthy, post, push, read_all, refused
from tests.support.door_server import DoorServer
from tests.support.process import until


@pytest.fixture
def calm() -> Iterator[DoorServer]:
    """With the real deadlines, which no fast test meets."""
    with DoorServer() as running:
        yield running


# headers


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"X-Long: " + b"x" * 70_000, 431),
        (b"X-Half: " + b"x" * 40_000 + b"\r\nX-Other: " + b"x" * 40_000, 431),
        (b"\r\n".join(b"x%d: y" % i for i in range(101)), 431),
    ],
    ids=["one line", "two lines", "many lines"],
)
@pytest.mark.parametrize("before", [b"", post(b"a"), post(b"a") + get()], ids=["first", "second", "third"])
def test_too_many_header_bytes_are_refused(calm: DoorServer, lines: bytes, status: int, before: bytes) -> None:
    with calm.connect() as raw:
        raw.sendall(before)
        for _ in range(before.count(b"HTTP/1.1")):
            assert answer(raw)[0] == 200
        raw.sendall(HEAD + lines + b"\r\n\r\n")
        assert refused(raw)["status"] == status
    assert healthy(calm)


def test_headers_that_never_end_are_refused_as_they_come(calm: DoorServer) -> None:
    for data in (b"x" * 65_536, b"X-More: y\r\n" * 5000):
        with calm.connect() as raw:
            raw.sendall(HEAD + b"X-Long: ")
            push(raw, data, 4)
            assert refused(raw)["status"] == 431


def test_headers_behind_a_pipelined_request_are_refused_after_its_answer(calm: DoorServer) -> None:
    with calm.connect() as raw:
        raw.sendall(get(5) + HEAD + b"X-Long: " + b"x" * 70_000 + b"\r\n\r\n")
        answers = read_all(raw)
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert answers.count(b"HTTP/1.1 ") == 1 or b"HTTP/1.1 431 " in answers


def test_lines_after_a_chunked_body_are_bounded(calm: DoorServer) -> None:
    for data in (b"x" * 65_536, b"X-More: y\r\n" * 5000):
        with calm.connect() as raw:
            raw.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Long: ")
            push(raw, data, 4)
            assert refused(raw)["status"] == 431


def test_a_long_path_is_refused(calm: DoorServer) -> None:
    with calm.connect() as raw:
        raw.sendall(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert refused(raw)["status"] == 414
    with calm.connect() as raw:
        raw.sendall(b"GET /" + b"x" * 9000)
        assert refused(raw)["status"] == 414


def test_what_is_not_http_is_refused(calm: DoorServer) -> None:
    with calm.connect() as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert refused(raw)["status"] == 400


def test_large_headers_within_the_bound_pass(calm: DoorServer) -> None:
    with calm.connect() as raw:
        for _ in range(3):
            raw.sendall(HEAD + b"X-Long: " + b"x" * 60_000 + b"\r\nContent-Length: 3\r\n\r\nabc")
            assert answer(raw)[2] == b'{"bytes":3}'


def test_a_chain_of_requests_is_answered_in_order_as_far_as_it_is_bounded(calm: DoorServer) -> None:
    with calm.connect() as raw:
        raw.sendall(b"".join(get(n) for n in range(1, 21)))
        assert [len(answer(raw)[2]) for _ in range(20)] == list(range(1, 21))
    with calm.connect() as raw:
        raw.sendall(get() * 500)
        with contextlib.suppress(ConnectionResetError):
            assert 1 <= read_all(raw).count(b"HTTP/1.1 200 ") < 100


# time


def test_a_late_client_is_refused_and_a_silent_one_is_closed() -> None:
    with DoorServer(header_deadline_s=0.3, request_deadline_s=0.6) as running, contextlib.ExitStack() as open_ones:
        silent, half, body = (open_ones.enter_context(running.connect()) for _ in range(3))
        half.sendall(HEAD)
        body.sendall(post(b"abc", 100))
        began = time.monotonic()
        assert read_all(silent) == b""
        assert refused(half)["status"] == 408
        late = refused(body)
        assert (late["status"], late["type"]) == (408, "urn:imray:problem:late")
        assert 0.4 < time.monotonic() - began < 3
        half.close()
        body.close()
        until(lambda: running.limits.connections == 0, "all are closed", 5)


def test_a_trickle_does_not_move_a_deadline() -> None:
    with DoorServer(header_deadline_s=0.4, request_deadline_s=0.4) as running:
        for start, drop in ((b"", b"\r\n"), (HEAD, b"X-A: b\r\n"), (post(b"", 1000), b"x")):
            with running.connect() as raw:
                raw.sendall(start)
                began = time.monotonic()
                raw.settimeout(0.05)  # a drop every time that nothing is heard
                heard = b"?"
                while heard and time.monotonic() - began < 5:
                    with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                        raw.sendall(drop)
                        heard = raw.recv(1 << 16)
                        assert heard.startswith(b"HTTP/1.1 408 ") or not heard
                assert time.monotonic() - began < 4


def test_a_request_in_work_and_a_connection_kept_alive_are_not_late() -> None:
    server = DoorServer(header_deadline_s=0.2, request_deadline_s=0.2, write_deadline_s=0.2)
    with server as running, running.connect() as raw:
        for _ in range(3):
            raw.sendall(post(b"abc"))
            assert answer(raw)[2] == b'{"bytes":3}'
            raw.settimeout(0.6)
            with pytest.raises(TimeoutError):
                raw.recv(1)  # nothing comes, and nothing is closed
            raw.settimeout(20)


def test_who_does_not_read_is_cut_off() -> None:
    server = DoorServer(write_deadline_s=0.4)
    with server as running, running.connect(4096) as silent, running.connect(4096) as reader:
        silent.sendall(get(20 * MB))
        reader.sendall(get(20 * MB))
        began = time.monotonic()
        assert len(answer(reader)[2]) == 20 * MB
        until(lambda: running.limits.connections == 1, "the silent one is cut off", 5)
        assert time.monotonic() - began < 5
        until(lambda: running.limits.bytes == 0, "nothing is held for it", 5)


def test_who_takes_a_long_answer_slowly_is_not_cut_off() -> None:
    with DoorServer(write_deadline_s=0.3) as running, running.connect(65_536) as raw:
        request = get(16 * MB).replace(b" HTTP", b"&part=262144 HTTP")
        raw.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        began = time.monotonic()
        heard = 0
        while chunk := raw.recv(65_536):
            heard += len(chunk)
            # in step with a clock, for six deadlines
            while time.monotonic() - began < heard / (8 * MB):
                select.select([], [], [], 0.005)
        assert heard > 16 * MB
        assert time.monotonic() - began > 1.5


# what was so before


def test_expect_head_chunks_and_an_upgrade_work_as_before(calm: DoorServer) -> None:
    with calm.connect() as raw:
        raw.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert raw.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"abc")
        assert answer(raw)[2] == b'{"bytes":3}'
        raw.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3;x=y\r\ndef\r\n0\r\nX-T: y\r\n\r\n")
        assert answer(raw)[2] == b'{"bytes":6}'
        raw.sendall(get().replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"))
        assert answer(raw)[0] == 200
    with calm.connect() as raw:
        raw.sendall(get(100_000).replace(b"GET", b"HEAD").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        head, _, body = read_all(raw).partition(b"\r\n\r\n")
        assert b"content-length: 100000" in head
        assert body == b""
    until(lambda: calm.limits.connections == 0, "all is given back", 5)


@pytest.mark.parametrize("length", [b"Content-Length: 70\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_body_behind_an_upgrade_is_no_request_of_its_own(calm: DoorServer, length: bytes) -> None:
    with calm.connect() as raw:
        raw.sendall(HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + length + b"\r\n")
        time.sleep(0.05)  # so that it comes by a read of its own
        with contextlib.suppress(OSError):  # it may be closed already
            raw.sendall(get(10))
        status, _, body = answer(raw)
        assert (status, b"Upgrade" in body) == (400, True)
        assert read_all(raw) == b"", "nothing more is answered"
    with calm.connect() as raw:
        raw.sendall(get(5).replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"))
        assert answer(raw)[0] == 200
        assert read_all(raw) == b"", "the parser reads no further, so the connection ends"


@pytest.mark.parametrize("seed", range(5))
def test_requests_are_answered_however_they_are_cut(calm: DoorServer, seed: int) -> None:
    chance = random.Random(seed)
    requests: list[bytes] = []
    expected: list[bytes] = []
    for _ in range(25):
        size = chance.choice([0, 1, 300, 70_000, 300_000])
        kind = chance.randrange(3)
        if kind == 0:
            requests.append(get(min(size, 1000)))
            expected.append(b"x" * min(size, 1000))
            continue
        expected.append(b'{"bytes":%d}' % size)
        if kind == 1:
            requests.append(post(b"x" * size))
        else:
            chunks = b"%x\r\n%b\r\n" % (size, b"x" * size) if size else b""
            requests.append(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    stream = b"".join(requests)
    with calm.connect() as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        at = 0
        while at < len(stream):
            size = chance.choice([1, 7, 100, 5000, 200_000])
            raw.sendall(stream[at : at + size])
            at += size
        assert [answer(raw)[2] for _ in requests] == expected
    until(lambda: calm.limits.bytes == 0, "all is given back", 5)
