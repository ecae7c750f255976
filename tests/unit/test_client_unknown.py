"""An outcome that was unknown once stays unknown: no later refusal says that nothing was written.

The transport is mocked and the clock moves with the pauses alone.
"""

from __future__ import annotations

import io
from typing import Any

import httpx
import orjson
import pyarrow as pa
import pytest

from imray.client import (
    AsyncClient,
    AuthError,
    Client,
    InvalidError,
    RetryPolicy,
    UnavailableError,
    UnknownOutcomeError,
)

LOST = "no answer"
RAW_IDS = [bytes([n]) * 16 for n in range(3)]
IDS = [f"{raw.hex()[:8]}-{raw.hex()[8:12]}-{raw.hex()[12:16]}-{raw.hex()[16:20]}-{raw.hex()[20:]}" for raw in RAW_IDS]
TIMEOUT_S = 30.0
ROWS = pa.table(
    {
        "conv_id": pa.array(["a", "a", "b"]),
        "client_msg_id": pa.array(RAW_IDS, pa.binary(16)),
        "body": pa.array([b"0", b"1", b"2"]),
    }
)
MESSAGES = [{"conv_id": "a", "body": str(n), "client_msg_id": IDS[n]} for n in range(3)]

Answer = str | int | list[int]
"""No answer, the status of the whole request, or the statuses of its messages."""


def arrow_results(statuses: list[int]) -> bytes:
    table = pa.table({"status": pa.array(statuses, pa.uint16()), "conv_seq": pa.array(statuses, pa.int64())})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


class Talk:
    """One client, whichever it is, and what it is answered; the last answer is given for ever."""

    def __init__(self, kind: str) -> None:
        self.answers: list[Answer] = []
        self.asked = 0
        self.now_s = 0.0
        options: dict[str, Any] = {
            "timeout_s": TIMEOUT_S,
            "retry": RetryPolicy(pause_s_min=1, pause_s_max=2),
            "transport": httpx.MockTransport(self.answer),
            "clock_s": lambda: self.now_s,
        }
        self.client: Any = (
            AsyncClient("http://imray.test", sleep=self.sleep_async, **options)
            if kind == "async"
            else Client("http://imray.test", sleep=self.sleep, **options)
        )

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s

    async def sleep_async(self, pause_s: float) -> None:
        self.now_s += pause_s

    def answer(self, request: httpx.Request) -> httpx.Response:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, str):
            raise httpx.ReadTimeout(answer)
        if isinstance(answer, int):
            return httpx.Response(answer, json={"detail": "because"})
        if request.headers["content-type"] != "application/json":
            return httpx.Response(200, content=arrow_results(answer))
        messages = orjson.loads(request.content)["messages"]
        results = [
            {"status": status, "conv_id": m["conv_id"], "client_msg_id": m["client_msg_id"], "detail": "because"}
            for status, m in zip(answer, messages, strict=True)
        ]
        return httpx.Response(200, json={"results": results})

    async def do(self, name: str, *args: Any, **named: Any) -> Any:
        result = getattr(self.client, name)(*args, **named)
        return await result if isinstance(self.client, AsyncClient) else result

    async def batch(self, wire: str, *answers: Answer) -> list[int]:
        """The statuses that a batch of three ends with."""
        self.answers = list(answers)
        if wire == "json":
            return statuses_of(await self.do("send_batch", MESSAGES))
        return statuses_of(await self.do("send_arrow", ROWS))


def statuses_of(outcomes: Any) -> list[int]:
    if isinstance(outcomes, list):
        return [outcome.status for outcome in outcomes]
    return list(outcomes.column("status").to_pylist())


@pytest.fixture(params=["async", "sync"])
def talk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Talk:
    monkeypatch.setattr("random.random", lambda: 0.5)  # no try so near the deadline that it has no time
    return Talk(request.param)


@pytest.fixture(params=["json", "arrow"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


lost_tries = pytest.mark.parametrize("lost", [LOST, 502, 504])


@pytest.mark.parametrize("later", [[422], [503], [418]])
async def test_a_message_that_was_unknown_once_stays_so_until_the_deadline(
    talk: Talk, wire: str, later: list[int]
) -> None:
    with pytest.raises(UnknownOutcomeError) as e:
        await talk.batch(wire, [201, 504, 409], later)
    assert e.value.client_msg_ids == (IDS[1],)
    assert statuses_of(e.value.outcomes) == [201, 504, 409]
    assert talk.asked > 3
    assert talk.now_s > TIMEOUT_S - 3


@lost_tries
@pytest.mark.parametrize("later", [422, 503])
async def test_after_a_lost_try_no_message_is_known_not_to_be_written(
    talk: Talk, wire: str, lost: Answer, later: int
) -> None:
    with pytest.raises(UnknownOutcomeError) as e:
        await talk.batch(wire, lost, [201, later, later], [later, later])
    assert e.value.client_msg_ids == (IDS[1], IDS[2])
    assert statuses_of(e.value.outcomes) == [201, 504, 504]


@lost_tries
async def test_a_lost_retry_makes_messages_unknown_that_were_known_not_to_be_written(
    talk: Talk, wire: str, lost: Answer
) -> None:
    with pytest.raises(UnknownOutcomeError) as e:
        await talk.batch(wire, [503, 201, 422], lost, 503)
    assert e.value.client_msg_ids == (IDS[0],)
    assert statuses_of(e.value.outcomes) == [504, 201, 422]


@pytest.mark.parametrize("final", [200, 201, 409, 500])
async def test_what_says_whether_the_message_is_stored_ends_the_unknown(talk: Talk, wire: str, final: int) -> None:
    assert await talk.batch(wire, LOST, [422, 201, 503], [503, 504], [final, 422], [final]) == [final, 201, final]


async def test_a_refusal_is_final_for_messages_that_were_never_unknown(talk: Talk, wire: str) -> None:
    assert await talk.batch(wire, 503, [503, 504, 422], [422, 200]) == [422, 200, 422]
    assert talk.asked == 3


async def test_only_the_unknown_ones_of_a_batch_become_unknown_at_the_deadline(talk: Talk, wire: str) -> None:
    with pytest.raises(UnknownOutcomeError) as e:
        await talk.batch(wire, [503, 504, 201], [503, 503])
    assert e.value.client_msg_ids == (IDS[0], IDS[1])
    assert statuses_of(e.value.outcomes) == [503, 504, 201]


async def test_an_outcome_kept_unknown_says_what_the_last_answer_was(talk: Talk) -> None:
    with pytest.raises(UnknownOutcomeError) as e:
        await talk.batch("json", LOST, [201, 201, 422], [422])
    assert "422" in e.value.outcomes[2].detail
    assert "because" in e.value.outcomes[2].detail


@pytest.mark.parametrize("refusal", [401, 422])
async def test_a_refused_retry_after_an_unknown_message_carries_the_outcomes(
    talk: Talk, wire: str, refusal: int
) -> None:
    with pytest.raises(UnknownOutcomeError, match="because") as e:
        await talk.batch(wire, [201, 504, 503], refusal)
    assert e.value.client_msg_ids == (IDS[1], IDS[2])
    assert statuses_of(e.value.outcomes) == [201, 504, 503]


async def test_a_refused_retry_does_not_hide_that_a_part_of_the_batch_is_stored(talk: Talk, wire: str) -> None:
    with pytest.raises(UnknownOutcomeError, match="because") as e:
        await talk.batch(wire, [201, 503, 422], 401)
    assert e.value.client_msg_ids == (IDS[1],)
    assert statuses_of(e.value.outcomes) == [201, 503, 422]


@pytest.mark.parametrize(("refusal", "error"), [(401, AuthError), (422, InvalidError)])
async def test_tries_that_wrote_nothing_leave_a_refusal_what_it_is(
    talk: Talk, refusal: int, error: type[Exception]
) -> None:
    talk.answers = [503, 429, refusal]
    with pytest.raises(error, match="because"):
        await talk.do("send", "a", "x", client_msg_id=IDS[0])
    talk.asked = 0
    with pytest.raises(error, match="because"):
        await talk.batch("json", 503, 429, refusal)


@lost_tries
@pytest.mark.parametrize("refusal", [401, 422])
async def test_a_send_that_was_unknown_once_is_not_refused(talk: Talk, lost: Answer, refusal: int) -> None:
    talk.answers = [503, lost, 503, refusal]
    with pytest.raises(UnknownOutcomeError, match=r"because.*; send again with the same ids$") as e:
        await talk.do("send", "a", "x", client_msg_id=IDS[0])
    assert e.value.client_msg_ids == (IDS[0],)


@lost_tries
@pytest.mark.parametrize("refusal", [401, 422])
async def test_topics_that_may_be_set_are_not_refused(talk: Talk, lost: Answer, refusal: int) -> None:
    talk.answers = [lost, 503, refusal]
    with pytest.raises(UnavailableError, match="because"):
        await talk.do("set_topics", "a", 4)
    talk.answers = [503, refusal]
    talk.asked = 0
    with pytest.raises((AuthError, InvalidError), match="because"):
        await talk.do("set_topics", "a", 4)


@lost_tries
@pytest.mark.parametrize(("refusal", "error"), [(401, AuthError), (422, InvalidError)])
async def test_a_lost_read_leaves_a_refusal_what_it_is(
    talk: Talk, lost: Answer, refusal: int, error: type[Exception]
) -> None:
    talk.answers = [lost, refusal]
    with pytest.raises(error, match="because"):
        await talk.do("history", "a")
