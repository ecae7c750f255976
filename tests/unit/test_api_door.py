"""Paths are matched as they were sent; and what a caller is told of a row that can be neither numbered nor answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from imray.core.columns import RowStatus
from imray.core.replies import Appended, Firsts, Refusal
from imray.engine.batcher import SendAnswer
from imray.engine.sends import Send
from imray.settings import Settings
from tests.support.api_system import FakeBackend, app_over, bearer, client_of

_MESSAGE = {"body": "x", "client_msg_id": "0" * 32}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/conversations%2Ftea/messages",
        "/v1%2Fconversations%2Ftea/messages",
        "/v1/conversations%2ftea%2fmessages",
        "/v1/%63onversations/tea/messages",
        "//v1/conversations/tea/messages",
    ],
)
async def test_an_encoded_slash_is_no_way_to_a_conversation(tmp_path: Path, path: str) -> None:
    async with client_of(app_over(FakeBackend(Settings()), tmp_path)) as http:
        answer = await http.post(path, json=_MESSAGE, headers=bearer("ada"))
    assert answer.status_code == 404, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_an_encoded_slash_in_a_name_stays_one(tmp_path: Path) -> None:
    engine = FakeBackend(Settings())
    async with client_of(app_over(engine, tmp_path)) as http:
        answer = await http.post("/v1/conversations/a%2Fb/messages", json=_MESSAGE, headers=bearer("ada"))
    assert (answer.status_code, answer.json()["conv_id"]) == (201, "a/b")


class Damaged(FakeBackend):
    """Of three rows the second is as it is told."""

    def __init__(self, status: int) -> None:
        super().__init__(Settings())
        one = np.array([1])
        firsts = Firsts(one, np.array([status], np.uint8), one * 5, one * 0, one, one)
        self.answer = Appended(3, 1, 9, 1, 0, np.array([1, 0, 2]), 2, firsts)

    async def send(self, send: Send) -> SendAnswer:
        return SendAnswer(self.answer, 1)

    async def send_batches(self, batches: dict[int, pa.RecordBatch]) -> dict[int, Appended | Refusal]:
        return dict.fromkeys(batches, self.answer)


@pytest.mark.parametrize(
    ("status", "code"), [(RowStatus.UNREADABLE, 500), (RowStatus.WAITING, 504), (RowStatus.DUPLICATE, 200)]
)
async def test_only_the_row_itself_is_refused(tmp_path: Path, status: int, code: int) -> None:
    messages = [{"conv_id": "tea", "body": "x", "client_msg_id": f"{i:032x}"} for i in range(3)]
    async with client_of(app_over(Damaged(status), tmp_path)) as http:
        one = await http.post("/v1/conversations/tea/messages", json=_MESSAGE, headers=bearer("ada"))
        answer = await http.post("/v1/messages:batch", json={"messages": messages}, headers=bearer("ada"))
    assert one.status_code == code
    assert answer.status_code < 300, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    assert [r["status"] for r in results] == [201, code, 201]
    if code != 200:
        assert "conv_seq" not in results[1]
        assert "parquet" not in results[1]["detail"], "ordinary callers are told of no files"
        assert [r["conv_seq"] for r in (results[0], results[2])] == [1, 2]
        assert "conv_seq" not in one.json()
