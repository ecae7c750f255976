"""Batches in columns. The transport is mocked: partial outcomes are what a real server rarely shows."""

from __future__ import annotations

import io
from typing import Any

import httpx
import pyarrow as pa
import pytest

from imray.client import Client, InvalidError, RetryPolicy, ServerError, UnknownOutcomeError
from imray.client.arrow import ARROW_STREAM

QUICK = RetryPolicy(pause_s_min=0.001, pause_s_max=0.002)
IDS = [bytes([n]) * 16 for n in range(4)]


def rows(**extra: Any) -> pa.Table:
    columns = {
        "conv_id": pa.array(["a", "a", "b", "a"]).dictionary_encode(),
        "client_msg_id": pa.array(IDS, pa.binary(16)),
        "body": pa.array([b"0", b"\xff", b"2", b"3"]),
    }
    return pa.table(columns | extra)


class Mock:
    """Answers each request with the next statuses; a row's conv_seq is 10 times the request plus its place."""

    def __init__(self, *answers: list[int] | httpx.Response) -> None:
        self.answers = list(answers)
        self.requests: list[pa.Table] = []
        self.client = Client(
            "http://imray.test", retry=QUICK, transport=httpx.MockTransport(self.handle), sleep=lambda _: None
        )

    def handle(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["content-type"] == request.headers["accept"] == ARROW_STREAM
        assert request.url.path == "/v1/messages:batch"
        self.requests.append(pa.ipc.open_stream(request.content).read_all())
        answer = self.answers.pop(0)
        if isinstance(answer, httpx.Response):
            return answer
        seq = [len(self.requests) * 10 + i if s == 201 else None for i, s in enumerate(answer)]
        table = pa.table({"status": pa.array(answer, pa.uint16()), "conv_seq": pa.array(seq, pa.int64())})
        out = io.BytesIO()
        with pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
        return httpx.Response(200, content=out.getvalue(), headers={"content-type": ARROW_STREAM})


def test_a_table_and_a_record_batch() -> None:
    for sent in (rows(), rows().to_batches()[0]):
        mock = Mock([201] * 4)
        assert mock.client.send_arrow(sent).column("conv_seq").to_pylist() == [10, 11, 12, 13]
        assert mock.requests == [rows()]


def test_only_open_rows_are_sent_again_and_outcomes_keep_the_requests_order() -> None:
    mock = Mock([503, 201, 504, 409], [504, 201], httpx.Response(502), [201])
    outcomes = mock.client.send_arrow(rows())
    assert outcomes.column("status").to_pylist() == [201, 201, 201, 409]
    assert outcomes.column("conv_seq").to_pylist() == [40, 11, 21, None]
    sent = [request.column("client_msg_id").to_pylist() for request in mock.requests]
    assert sent == [IDS, [IDS[0], IDS[2]], [IDS[0]], [IDS[0]]]


def test_the_deadline_tells_what_is_known() -> None:
    mock = Mock([201, 201, 503, 201], httpx.Response(503, headers={"retry-after": "60"}))
    with pytest.raises(UnknownOutcomeError) as e:
        mock.client.send_arrow(rows())
    assert e.value.client_msg_ids == ("02020202-0202-0202-0202-020202020202",)
    assert e.value.outcomes.column("status").to_pylist() == [201, 201, 503, 201]


@pytest.mark.parametrize("answer", [[201] * 3, httpx.Response(200, content=b"<html>")])
def test_an_answer_that_does_not_fit(answer: Any) -> None:
    with pytest.raises(ServerError) as e:
        Mock(answer).client.send_arrow(rows())
    assert len(e.value.client_msg_ids) == 4


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (rows().drop_columns(["body"]), "body are missing"),
        (rows(client_msg_id=pa.array(["x"] * 4)), "fixed_size_binary"),
        (rows(client_msg_id=pa.array([None, *IDS[1:]], pa.binary(16))), "without nulls"),
        (rows().slice(0, 0), "no rows"),
    ],
)
def test_rows_that_cannot_be_sent(sent: pa.Table, reason: str) -> None:
    with pytest.raises(InvalidError, match=reason):
        Mock().client.send_arrow(sent)
