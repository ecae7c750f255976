"""A gateway's pages and figures: what it does where the history reader or a shard has no answer."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pyarrow as pa
import pytest

from imray.core.errors import InvalidError
from imray.core.pages import NoPage, Page, PageAsk, PageCall, PageFault
from imray.core.replies import Refusal, Refused
from imray.core.routing import log_of
from imray.core.status import HotFigures, HotGroupStatus, PartitionStatus, ServingState, ShardStatus
from imray.engine.engine import Engine
from imray.engine.pages import decode_answer, decode_call, encode_answer, encode_call
from imray.log.manifest import Manifest
from imray.rpc import messages
from imray.rpc.directory import HISTORY
from imray.rpc.endpoint import Endpoint, Parts
from imray.rpc.methods import Method
from imray.rpc.server import Handler, RpcServer, ServerConnection
from tests.support.fake_writers import SETTINGS, FakeDirectory, located

ASK = PageAsk("room", 2, 9, 50, True, "red")
TABLE = pa.table({"conv_seq": [8, 7], "body": pa.array([b"\xff", b"x"], pa.binary())})
PAGE = Page(TABLE, [(4, 6, "a block that was lost")], 3, 8, 3)
DAMAGED = NoPage(PageFault.DERIVED, "derived file x.ids.arrow: it does not verify", "x.ids.arrow")
CORRUPT = NoPage(PageFault.CORRUPT, "corrupt file 3.parquet")
AWAY = NoPage(PageFault.UNAVAILABLE, "a file was merged meanwhile")


class Process:
    """A process that answers some methods of one log."""

    def __init__(self, directory: FakeDirectory, log: int, handlers: dict[Method, Handler]) -> None:
        self._server = RpcServer(1_000_000)
        self._server.serve(log, handlers)
        self._endpoint: Endpoint | None = None
        directory.add(log, self)

    async def endpoint(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = await self._server.open("127.0.0.1")
        return self._endpoint

    async def close(self) -> None:
        await self._server.close()


class History:
    """A reader that gives one answer after the other, the last one again and again; None: it dies instead."""

    def __init__(self, directory: FakeDirectory, *answers: Page[pa.Table] | NoPage | None) -> None:
        self.answers = deque(answers)
        self.calls: list[PageCall] = []
        Process(directory, HISTORY, {Method.READ_HISTORY: self._read})

    async def _read(self, content: memoryview, caller: ServerConnection) -> Parts:
        self.calls.append(decode_call(content))
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            caller.abort()
            return ()
        return encode_answer(answer)


class Shard:
    """Knows where numbers are, and looks at files."""

    def __init__(self, directory: FakeDirectory) -> None:
        self.mended: list[str] = []
        Process(directory, 0, {Method.LOCATE: self._locate, Method.MEND: self._mend})

    async def _locate(self, _content: memoryview, _caller: ServerConnection) -> Parts:
        return messages.encode_locate_answer(located(3, 20))

    async def _mend(self, content: memoryview, _caller: ServerConnection) -> Parts:
        self.mended.append(messages.decode_mend(content))
        return messages.encode_done(None)


@pytest.fixture
async def directory() -> AsyncIterator[FakeDirectory]:
    made = FakeDirectory()
    yield made
    await made.close()


@pytest.fixture
async def engine(directory: FakeDirectory) -> AsyncIterator[Engine]:
    made = Engine(directory, Manifest("test", 1, 1), replace(SETTINGS, send_deadline_s=0.3))
    yield made
    made.close()


async def test_a_page(directory: FakeDirectory, engine: Engine) -> None:
    Shard(directory)
    history = History(directory, PAGE)
    assert await engine.history(ASK) == (located(3, 20), PAGE)
    assert history.calls == [PageCall(0, ASK, 20, [], [])]


async def test_a_page_above_the_highest_number_there_can_be(directory: FakeDirectory, engine: Engine) -> None:
    """A number that does not fit would be a call that nobody can answer, tried again until the deadline."""
    Shard(directory)
    history = History(directory, PAGE)
    ask = msgspec.structs.replace(ASK, after=2**63 - 1)
    assert await engine.history(ask) == (located(3, 20), PAGE)
    assert [call.ask.after for call in history.calls] == [2**63 - 2]


async def test_a_damaged_derived_file_is_mended_and_the_page_read_again(
    directory: FakeDirectory, engine: Engine
) -> None:
    shard = Shard(directory)
    History(directory, DAMAGED, PAGE)
    assert await engine.history(ASK) == (located(3, 20), PAGE)
    assert shard.mended == ["x.ids.arrow"]


@pytest.mark.parametrize("first", [AWAY, None], ids=["no page", "dies"])
async def test_a_reader_without_an_answer_is_asked_again(
    directory: FakeDirectory, engine: Engine, first: NoPage | None
) -> None:
    Shard(directory)
    history = History(directory, first, PAGE)
    assert await engine.history(ASK) == (located(3, 20), PAGE)
    assert len(history.calls) == 2


async def test_corruption_is_told_at_once(directory: FakeDirectory, engine: Engine) -> None:
    Shard(directory)
    history = History(directory, CORRUPT)
    assert await engine.history(ASK) == Refusal(Refused.CORRUPT, CORRUPT.detail)
    assert len(history.calls) == 1


@pytest.mark.parametrize("answer", [AWAY, None], ids=["no page", "dies"])
async def test_without_an_answer_until_the_deadline_it_is_unavailable(
    directory: FakeDirectory, engine: Engine, answer: NoPage | None
) -> None:
    Shard(directory)
    history = History(directory, answer)
    refusal = await engine.history(ASK)
    assert isinstance(refusal, Refusal)
    assert refusal.why is Refused.UNAVAILABLE
    assert len(history.calls) > 1


async def test_figures_name_who_gives_none(directory: FakeDirectory, engine: Engine) -> None:
    group = HotGroupStatus("room", 2, 9, 7, 2, 1, 0.5, 1, 10, 0, False)
    home = ShardStatus(0, ServingState.SERVING, "", 0, [], None, HotFigures([group], 3, 0.25))
    first = PartitionStatus(0, 1, ServingState.SERVING, "", 4, 77)

    async def home_status(_content: memoryview, _caller: ServerConnection) -> Parts:
        return messages.encode_struct(home)

    async def first_status(_content: memoryview, _caller: ServerConnection) -> Parts:
        return messages.encode_struct(first)

    (nobody,) = await engine.status()
    assert (nobody.shard, nobody.state) == (0, ServingState.UNREACHABLE)
    Process(directory, 0, {Method.STATUS: home_status})
    Process(directory, log_of(0, 1), {Method.STATUS: first_status})
    (found,) = await engine.status()
    assert found.partitions[0] == first
    assert (found.partitions[1].slot, found.partitions[1].state) == (2, ServingState.UNREACHABLE)


@pytest.mark.parametrize("answer", [PAGE, DAMAGED, CORRUPT, Page(TABLE.slice(0, 0), [], 5, 4, None)])
def test_answers_travel_whole(answer: Page[pa.Table] | NoPage) -> None:
    content = b"".join(encode_answer(answer))
    assert decode_answer(memoryview(content)) == answer
    for cut in range(len(content)):
        with pytest.raises(InvalidError):
            decode_answer(memoryview(content[:cut]))


def test_calls_travel_whole() -> None:
    call = PageCall(3, ASK, 20, [], [(1 << 41, 4, 9)])
    content = b"".join(encode_call(call))
    assert decode_call(memoryview(content)) == call
    with pytest.raises(InvalidError):
        decode_call(memoryview(content[:-1]))
