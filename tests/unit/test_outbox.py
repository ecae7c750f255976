"""The outbox: on disk before the first try, gone with the final answer, the same id until then, in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from imray.client import (
    Ack,
    AsyncOutbox,
    AuthError,
    BusyError,
    ConflictError,
    ImrayError,
    InvalidError,
    Outbox,
    OutboxAnswer,
    ServerError,
    UnavailableError,
    UnknownOutcomeError,
)
from imray.client.outbox_store import OutboxStore

ID = "0190b0f2-6f2e-7c3a-9d27-0242ac12000"
LOST = UnknownOutcomeError("no answer", ("?",))


class FakeClient:
    """Stores what it is sent, once for each id, unless a test says what becomes of the next tries."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.script: list[ImrayError | None] = []
        self.tried: list[tuple[str, str, str]] = []
        self.stored: dict[tuple[str, str], int] = {}
        self.gate: asyncio.Event | None = None
        self.began = asyncio.Event()

    def send(self, conv_id: str, body: str, **fields: Any) -> Ack:
        msg_id = fields["client_msg_id"]
        self.tried.append((conv_id, body, msg_id))
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        known = (conv_id, msg_id) in self.stored
        seq = self.stored.setdefault((conv_id, msg_id), len(self.stored) + 1)
        return Ack(conv_id, seq, msg_id, known, 1, 0, seq)

    @property
    def bodies(self) -> list[str]:
        return [body for _, body, _ in self.tried]


class FakeAsyncClient(FakeClient):
    async def send(self, conv_id: str, body: str, **fields: Any) -> Ack:  # type: ignore[override]
        await asyncio.sleep(0)
        self.began.set()
        if self.gate is not None:
            await self.gate.wait()
        return super().send(conv_id, body, **fields)


@pytest.fixture
def client(tmp_path: Path) -> FakeClient:
    return FakeClient(tmp_path / "outbox")


@pytest.fixture
def async_client(tmp_path: Path) -> FakeAsyncClient:
    return FakeAsyncClient(tmp_path / "outbox")


def waiting(outbox: Outbox) -> list[str]:
    return [message.body for message in outbox.waiting()]


def test_an_answered_send_leaves_nothing(client: FakeClient) -> None:
    with Outbox(client.path, client) as outbox:
        ack = outbox.send("tea", "hello", client_msg_id=ID + "1", topic="t", client_ts=3)
        assert (ack.conv_seq, ack.client_msg_id) == (1, ID + "1")
        assert waiting(outbox) == []


def test_it_is_on_disk_before_the_first_try(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    with Outbox(client.path, client) as outbox:
        send = client.send
        monkeypatch.setattr(client, "send", lambda *a, **k: (seen.append(len(outbox._store.rows())), send(*a, **k))[1])
        outbox.send("tea", "hello")
    assert seen == [1]


def test_what_has_no_answer_is_sent_again_after_a_restart_with_its_id(client: FakeClient) -> None:
    client.script = [LOST]
    with Outbox(client.path, client) as outbox:
        with pytest.raises(UnknownOutcomeError):
            outbox.send("tea", "hello", topic="t", sender="ada")
        assert waiting(outbox) == ["hello"]
    with Outbox(client.path, client) as outbox:
        (message,) = outbox.waiting()
        assert (message.topic, message.sender) == ("t", "ada")
        (answer,) = outbox.resend()
        assert answer.is_final
        assert answer.ack is not None
        assert waiting(outbox) == []
    assert len({msg_id for _, _, msg_id in client.tried}) == 1
    assert client.bodies == ["hello", "hello"]


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (ConflictError("c", "i", 1), False),
        (InvalidError("too large"), False),
        (AuthError("not yours", is_about_request=True), False),
        (AuthError("expired"), True),
        (ServerError("broken"), True),
        (UnavailableError("away"), True),
        (LOST, True),
    ],
)
def test_a_final_refusal_leaves_it_and_everything_else_stays(client: FakeClient, error: ImrayError, kept: bool) -> None:
    client.script = [error]
    with Outbox(client.path, client) as outbox:
        with pytest.raises(type(error)):
            outbox.send("tea", "hello")
        assert waiting(outbox) == (["hello"] if kept else [])


def test_earlier_ones_of_the_conversation_go_first(client: FakeClient) -> None:
    told: list[OutboxAnswer] = []
    with Outbox(client.path, client, on_answer=told.append) as outbox:
        client.script = [LOST, LOST]
        for body in ("one", "other"):
            with pytest.raises(UnknownOutcomeError):
                outbox.send("tea" if body == "one" else "coffee", body)
        client.script = [LOST]
        with pytest.raises(UnavailableError, match="behind an earlier message"):
            outbox.send("tea", "two")
        assert client.bodies == ["one", "other", "one"]
        assert outbox.send("tea", "three").conv_seq == 3
        assert client.bodies[3:] == ["one", "two", "three"]
        assert [answer.message.body for answer in told] == ["one", "two"]
        assert waiting(outbox) == ["other"]


def test_resend_stops_a_conversation_where_there_is_no_answer_and_goes_on_with_the_others(client: FakeClient) -> None:
    with Outbox(client.path, client) as outbox:
        for conv_id, body in (("tea", "a"), ("tea", "b"), ("coffee", "c")):
            outbox._store.put(conv_id, body, {"conv_id": conv_id, "body": body, "client_msg_id": body})
        client.script = [LOST, None]
        answers = outbox.resend()
        assert [(answer.message.body, answer.is_final) for answer in answers] == [("a", False), ("c", True)]
        client.script = [ConflictError("another", "a", 7), None]
        answers = outbox.resend()
        assert [(answer.message.body, answer.error is None) for answer in answers] == [("a", False), ("b", True)]
        assert waiting(outbox) == []


def test_what_the_server_could_only_refuse_is_never_kept(client: FakeClient) -> None:
    with Outbox(client.path, client) as outbox:
        for conv_id, fields in (("", {}), ("tea", {"client_msg_id": "no id"})):
            with pytest.raises(InvalidError):
                outbox.send(conv_id, "x", **fields)
        assert waiting(outbox) == []


def test_one_id_has_one_payload(client: FakeClient) -> None:
    client.script = [LOST, LOST]
    with Outbox(client.path, client) as outbox:
        for _ in range(2):
            with pytest.raises(UnknownOutcomeError):
                outbox.send("tea", "same", client_msg_id=ID + "1")
        with pytest.raises(InvalidError, match="another payload"):
            outbox.send("tea", "other", client_msg_id=ID + "1")
        assert waiting(outbox) == ["same"]


@pytest.mark.parametrize("bounds", [{"rows_max": 2}, {"bytes_max": 250}])
def test_it_is_bounded_and_a_final_answer_makes_room(client: FakeClient, bounds: dict[str, int]) -> None:
    client.script = [LOST] * 3
    with Outbox(client.path, client, **bounds) as outbox:
        for n in range(2):
            with pytest.raises(UnavailableError):
                outbox.send("tea", f"message {n}")
        for _ in range(2):
            with pytest.raises(BusyError, match="full"):
                outbox.send("tea", "one too many")
        assert len(client.tried) == 2
    with Outbox(client.path, client, **bounds) as outbox:
        with pytest.raises(BusyError):
            outbox.send("tea", "one too many")
        client.script = []
        outbox.resend()
        outbox.send("tea", "there is room")


def test_a_second_one_over_the_same_file_is_refused(client: FakeClient) -> None:
    with Outbox(client.path, client), pytest.raises(InvalidError, match="another process uses it"):
        Outbox(client.path, client)
    Outbox(client.path, client).close()


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(client: FakeClient) -> None:
    program = (
        "import sys, os, signal\n"
        "from imray.client.outbox_store import OutboxStore\n"
        "store = OutboxStore(sys.argv[1])\n"
        "store.put('tea', 'i', {'conv_id': 'tea', 'body': 'kept', 'client_msg_id': 'i'})\n"
        "print('kept', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(client.path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "kept\n"
        with pytest.raises(InvalidError, match="another process uses it"):
            OutboxStore(client.path)
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate(timeout=30)
    with Outbox(client.path, client) as outbox:
        assert waiting(outbox) == ["kept"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, and longer than a header of one" * 9)
    with pytest.raises(InvalidError, match="is it one"):
        OutboxStore(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as db:
        db.execute("CREATE TABLE t (a)")
    db.close()
    with pytest.raises(InvalidError, match="no outbox of this version"):
        OutboxStore(tmp_path / "other")
    with pytest.raises(InvalidError, match="cannot be opened"):
        OutboxStore(tmp_path / "no" / "such" / "folder")


def test_it_is_for_its_owner_only(client: FakeClient) -> None:
    with Outbox(client.path, client):
        for path in client.path.parent.iterdir():
            assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0, path


def test_it_is_synced_in_full(client: FakeClient) -> None:
    store = OutboxStore(client.path)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()


def test_threads_share_it(client: FakeClient) -> None:
    lock = threading.Lock()
    send: Callable[..., Ack] = client.send

    def one_at_a_time(*args: Any, **fields: Any) -> Ack:
        assert lock.acquire(blocking=False), "in order, so never two at once"
        try:
            return send(*args, **fields)
        finally:
            lock.release()

    client.send = one_at_a_time  # type: ignore[method-assign]
    with Outbox(client.path, client) as outbox, ThreadPoolExecutor(8) as pool:
        acks = list(pool.map(lambda n: outbox.send("tea", f"m{n}"), range(50)))
        assert sorted(ack.conv_seq for ack in acks) == list(range(1, 51))
        assert waiting(outbox) == []


async def test_many_sends_at_once_have_their_own_answers(async_client: FakeAsyncClient) -> None:
    told: list[OutboxAnswer] = []
    async with AsyncOutbox(async_client.path, async_client, on_answer=told.append) as outbox:
        sends = (outbox.send(f"conv {n % 3}", f"m{n}") for n in range(60))
        acks = await asyncio.gather(*sends)
        assert sorted(ack.conv_seq for ack in acks) == list(range(1, 61))
        assert await outbox.waiting() == []
        assert len(async_client.tried) == 60
        assert told == []
        assert len(outbox._turns) == 0


async def test_a_send_that_is_cancelled_stays(async_client: FakeAsyncClient) -> None:
    async_client.gate = asyncio.Event()
    async with AsyncOutbox(async_client.path, async_client) as outbox:
        sending = asyncio.create_task(outbox.send("tea", "hello"))
        await async_client.began.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        async_client.gate.set()
        (answer,) = await outbox.resend()
        assert (answer.message.body, answer.is_final) == ("hello", True)
        assert await outbox.waiting() == []


async def test_resend_answers_a_send_that_waits_for_its_turn(async_client: FakeAsyncClient) -> None:
    async_client.script = [LOST]
    async with AsyncOutbox(async_client.path, async_client) as outbox:
        with pytest.raises(UnknownOutcomeError):
            await outbox.send("tea", "one")
        answers, ack = await asyncio.gather(outbox.resend(), outbox.send("tea", "two"))
        assert ack.conv_seq == 2
        assert {answer.message.body for answer in answers} <= {"one", "two"}
        assert async_client.bodies == ["one", "one", "two"]
