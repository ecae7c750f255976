"""What the app answers when callers ask too much, too often, or for what is not theirs: through the app itself."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from starlette.types import Message

from api.pages import PART_BYTES, encode, slices
from api.problems import without_files
from imray.core.replies import Refusal, Refused
from imray.core.status import ServingState
from imray.settings import Settings
from tests.support.api_system import FakeBackend, app_over, bearer, client_of, page_of

_WAIT_S = 20.0
_CORRUPT = Refusal(
    Refused.CORRUPT, "corrupt file log/00000/00000000000000000003.parquet (bytes 0 to 4): no magic of Parquet. Nothing"
)
_FULL = Refusal(Refused.UNAVAILABLE, "shard-0 cannot write: put log/00000/3.parquet: No space left (errno 28): free it")
_MESSAGE = {"client_msg_id": "0190b0f26f2e7c3a9d270242ac120002", "body": "x"}
_URL = "/v1/conversations/c/messages"


async def pull_raw(app: Any, send: Any, caller: str = "hog", conv_id: str = "c") -> None:
    """A pull of history whose client takes the answer as `send` does."""
    path = f"/v1/conversations/{conv_id}/messages"
    headers = [(k.lower().encode(), v.encode()) for k, v in bearer(caller).items()]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "root_path": "",
        "http_version": "1.1",
    }
    never = asyncio.get_running_loop().create_future()

    async def receive() -> Message:
        await never
        raise AssertionError

    await app(scope, receive, send)


async def test_readiness_is_asked_once_however_many_ask(tmp_path: Path) -> None:
    engine = FakeBackend(Settings())
    engine.answers.clear()
    async with client_of(app_over(engine, tmp_path)) as http:
        asking = [asyncio.create_task(http.get("/readyz")) for _ in range(100)]
        asking[0].cancel()  # whoever asked first may go away
        await asyncio.wait_for(engine.was_asked.wait(), _WAIT_S)
        asking[1].cancel()
        engine.answers.set()
        answers = await asyncio.wait_for(asyncio.gather(*asking[2:]), _WAIT_S)
        answers += [await http.get("/readyz") for _ in range(100)]
    assert {a.status_code for a in answers} == {200}
    assert engine.asked == 1


async def test_readiness_is_as_of_a_moment_ago(tmp_path: Path) -> None:
    engine = FakeBackend(Settings(ready_interval_s=0.02))
    async with client_of(app_over(engine, tmp_path)) as http:
        assert (await http.get("/readyz")).status_code == 200
        engine.states = [
            (ServingState.SERVING, ""),
            (ServingState.CORRUPT, _CORRUPT.detail),
            (ServingState.UNWRITABLE, _FULL.detail),
        ]
        async with asyncio.timeout(_WAIT_S):
            while (answer := await http.get("/readyz")).status_code == 200:
                pass
    assert answer.status_code == 503
    told = answer.json()["shards"]
    assert set(told) == {"1", "2"}
    assert "operator" in told["1"]
    assert "No space left" in told["2"]
    assert "parquet" not in answer.text


async def test_figures_need_the_role_service(tmp_path: Path) -> None:
    async with client_of(app_over(FakeBackend(Settings()), tmp_path)) as http:
        refused = await http.get("/v1/status", headers=bearer("ada"))
        assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
        assert "pid" not in refused.text
        assert (await http.get("/v1/status", headers=bearer("bot", True))).json()["shards"][0]["pid"] == 7


@pytest.mark.parametrize("refusal", [_CORRUPT, _FULL], ids=["corrupt", "full"])
async def test_files_are_named_to_services_only(tmp_path: Path, refusal: Refusal) -> None:
    engine = FakeBackend(Settings())
    engine.refusal = refusal
    status = {Refused.CORRUPT: 500, Refused.UNAVAILABLE: 504}[refusal.why]
    batch = {"messages": [{"conv_id": "c", **_MESSAGE}]}
    async with client_of(app_over(engine, tmp_path)) as http:
        for service in (False, True):
            headers = bearer("ada", service)
            answers = [
                await http.post(_URL, json=_MESSAGE, headers=headers),
                await http.post("/v1/messages:batch", json=batch, headers=headers),
                await http.get(_URL, headers=headers),
                await http.get("/v1/conversations/c", headers=headers),
            ]
            assert {a.status_code for a in answers} == {status}
            assert {".parquet" in a.text for a in answers} == {service}
            if refusal is _CORRUPT and not service:
                assert all("operator" in a.json()["detail"] for a in answers)


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ("put log/00000/3.parquet: No space left", "put (a file): No space left"),
        ("cannot open '/data/x y': gone", "cannot open '(a file) y': gone"),
        ("the file 0003.parquet is gone", "the file (a file) is gone"),
        ("shard-0: no answer within 10.0 s", "shard-0: no answer within 10.0 s"),
        ("shard-0 has a full queue: retry later", "shard-0 has a full queue: retry later"),
    ],
)
def test_names_of_files_are_left_out(detail: str, shown: str) -> None:
    assert without_files(detail) == shown


async def test_an_exception_that_nobody_foresaw_is_a_problem_without_internals(tmp_path: Path) -> None:
    engine = FakeBackend(Settings())
    engine.fault = RuntimeError("secret inside")
    async with client_of(app_over(engine, tmp_path)) as http:
        for answer in (
            await http.post(_URL, json=_MESSAGE, headers=bearer("ada", True)),
            await http.get("/v1/conversations/c", headers=bearer("ada", True)),
        ):
            assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
            assert answer.json()["type"] == "urn:imray:problem:internal"
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text


async def test_a_caller_over_its_rate_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    settings = Settings(caller_requests_per_s=0.01, caller_messages_per_s=0.01, caller_burst_s=300)
    async with client_of(app_over(FakeBackend(settings), tmp_path)) as http:
        batch = {"messages": [{"conv_id": "c", **_MESSAGE}]}
        answers = [
            await http.post("/v1/messages:batch", json={"messages": batch["messages"] * 9}, headers=bearer("ada")),
            await http.get("/v1/version", headers=bearer("ada")),
            await http.post(_URL, json=_MESSAGE, headers=bearer("ada")),
            await http.get("/v1/version", headers=bearer("ada")),
        ]
        assert [a.status_code for a in answers] == [200, 200, 429, 429]
        for refused in answers[2:]:
            assert refused.headers["content-type"] == "application/problem+json"
            assert int(refused.headers["retry-after"]) >= 1
        assert (await http.get("/v1/version", headers=bearer("bob"))).status_code == 200
        for _ in range(5):
            assert (await http.post(_URL, json=_MESSAGE, headers=bearer("bot", True))).status_code == 201


async def test_large_pulls_of_one_caller_do_not_hold_up_another(tmp_path: Path) -> None:
    # about 45 MB of JSON each, as in the attack
    large = page_of([b"x" * 4000] * 8000)
    engine = FakeBackend(Settings(), large)
    app = app_over(engine, tmp_path)
    sent = 0

    async def take(message: Message) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        await asyncio.sleep(0)

    hogs = [asyncio.create_task(pull_raw(app, take, conv_id="large")) for _ in range(60)]
    async with client_of(app) as http:
        await asyncio.wait_for(engine.was_read.wait(), _WAIT_S)
        took_s: list[float] = []
        for _ in range(10):
            start_s = time.perf_counter()
            assert (await http.get("/livez")).status_code == 200
            took_s.append(time.perf_counter() - start_s)
            await asyncio.sleep(0.01)
        before = len(engine.read)
        engine.page = page_of([b"x"] * 3)
        assert len((await http.get(_URL, headers=bearer("ada"))).json()["messages"]) == 3
        assert engine.read[before:].index("c") <= 3
    for hog in hogs:
        hog.cancel()
    await asyncio.gather(*hogs, return_exceptions=True)
    assert sent > 0
    assert statistics.median(took_s) < 0.1


async def test_clients_that_do_not_read_hold_few_pages(tmp_path: Path) -> None:
    large = page_of([b"x" * 60_000] * 500)
    engine = FakeBackend(Settings(history_pages_bytes_max=200_000_000, history_wait_s=0.2), large)
    app = app_over(engine, tmp_path)
    never = asyncio.Event()
    all_answered = asyncio.Event()
    held: dict[int, int] = {}

    async def take_nothing(number: int, message: Message) -> None:
        held[number] = held.get(number, 0) + len(message.get("body", b""))
        if len(held) == 80:
            all_answered.set()
        if message["type"] == "http.response.body" and message.get("more_body"):
            await never.wait()

    def hog(number: int) -> asyncio.Task[None]:
        return asyncio.create_task(pull_raw(app, lambda m: take_nothing(number, m), f"hog {number % 20}"))

    hogs = [hog(i) for i in range(80)]
    async with client_of(app) as http:
        await asyncio.wait_for(all_answered.wait(), _WAIT_S)
        engine.page = page_of([b"x"] * 3)
        assert (await http.get(_URL, headers=bearer("ada"))).status_code == 200
    # of the 80 pages of 30 MB six are there, and of each the part that is being sent
    assert sum(size > 100_000 for size in held.values()) == 6
    assert sum(held.values()) < 6 * 3 * PART_BYTES
    for one in hogs:
        one.cancel()
    await asyncio.gather(*hogs, return_exceptions=True)
    engine.page = large
    async with client_of(app) as http:
        assert len((await http.get(_URL, headers=bearer("hog 1"))).json()["messages"]) == 500


async def test_a_client_that_takes_too_long_is_left(tmp_path: Path) -> None:
    engine = FakeBackend(
        Settings(history_send_timeout_s=0.05, write_bytes_per_s_min=10**9), page_of([b"x" * 60_000] * 50)
    )
    app = app_over(engine, tmp_path)
    ended: list[bool] = []

    async def stop(message: Message) -> None:
        ended.append(message["type"] == "http.response.body" and not message.get("more_body"))
        if message["type"] == "http.response.body":
            await asyncio.get_running_loop().create_future()

    await asyncio.wait_for(pull_raw(app, stop), _WAIT_S)
    assert not any(ended)
    async with client_of(app) as http:
        assert (await http.get(_URL, headers=bearer("hog"))).status_code == 200


@pytest.mark.parametrize(
    "bodies",
    [[], [b"x"], [b""] * 1200, [b"\x00" * 65_536] * 9, [b"\xff\xfe", "ä".encode()] * 700, [b"y" * PART_BYTES] * 3],
    ids=["none", "one", "empty", "control", "binary", "large"],
)
async def test_a_page_in_parts_is_the_same_page(tmp_path: Path, bodies: list[bytes]) -> None:
    table = page_of(bodies)
    assert sum(part.num_rows for part in slices(table)) == len(bodies)
    assert all(part.num_rows == 1 or part.column("body").nbytes <= 2 * PART_BYTES for part in slices(table))
    whole = json.loads(b"[" + encode(table) + b"]")
    engine = FakeBackend(Settings(), pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    async with client_of(app_over(engine, tmp_path)) as http:
        answer = await http.get("/v1/conversations/%C3%A4%22/messages", headers=bearer("ada"))
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert content.pop("messages") == whole
    assert len(whole) == len(bodies)
    assert content == {"conv_id": 'ä"', "holes": [], "stable_seq": 3, "epoch": 1, "next": None}


async def test_what_may_be_answered_is_documented(tmp_path: Path) -> None:
    async with client_of(app_over(FakeBackend(Settings()), tmp_path)) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            if path not in ("/livez", "/readyz"):
                assert {"401", "429", "500", "503"} <= set(operation["responses"]), path
    assert "403" in paths["/v1/status"]["get"]["responses"]
    assert "Retry-After" in paths["/v1/messages:batch"]["post"]["responses"]["429"]["headers"]
