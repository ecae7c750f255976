"""The benchmarks' own tools: medians, ratios, turns, tables, and the load generator's parsing. Measures nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import report
from benchmarks.engine import check_ack
from benchmarks.harness import ROOT, Figure, column, differences, in_turns, percentile, ratios
from benchmarks.load import ResponseParser, parse_head
from benchmarks.machine import filesystem
from benchmarks.requests import ArrowBatch, BadAnswerError, JsonBatch, Single, Target, sources
from benchmarks.workload import BODY_BYTES, Batches, bodies, conversation_names
from imray.core.replies import Appended, Firsts, Refusal, Refused
from imray.log.schema import check_batch, from_ipc

_TARGET = Target("127.0.0.1:1", "token")
_ANSWER = b'HTTP/1.1 201 Created\r\ncontent-type: application/json\r\nContent-Length: 14\r\n\r\n{"conv_seq":7}'


def test_median_and_target() -> None:
    assert Figure("rate", "1/s", [3.0, 1.0, 2.0], 2.0).met is True
    assert Figure("rate", "1/s", [3.0, 1.0, 1.5], 2.0).met is False
    assert Figure("latency", "ms", [1.0, 9.0, 2.0], 2.0, more_is_better=False).met is True
    assert Figure("latency", "ms", [2.5], 2.0, more_is_better=False).met is False
    assert Figure("size", "bytes", [1.0, 2.0]).met is None
    assert Figure("size", "bytes", [1.0, 2.0]).median == 1.5


def test_ratios_pair_the_turns() -> None:
    # the machine was half as fast in the second turn: the ratio does not see it
    assert ratios([100.0, 50.0, 100.0], [200.0, 100.0, 200.0]) == [0.5, 0.5, 0.5]
    assert differences([3.0, 4.0], [1.0, 1.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="pairs"):
        ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="pairs"):
        differences([1.0], [])


def test_sides_run_in_turns() -> None:
    order: list[str] = []

    def side(name: str) -> dict[str, float]:
        order.append(name)
        return {"x": float(len(order))}

    taken = in_turns({"a": lambda: side("a"), "b": lambda: side("b")}, 3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert column(taken["a"], "x") == [1.0, 3.0, 5.0]
    assert column(taken["b"], "x") == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5.0], 0.99, 5.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 101)), 0.5, 50),
        (list(range(1, 101)), 1.0, 100),
        (list(range(1, 1001)), 0.99, 990),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


def test_a_fresh_folder_is_emptied_at_once_and_gone_when_the_process_ends(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from benchmarks.harness import Options
with Options(Path({str(tmp_path)!r}) / "made").fresh_folder() as folder:
    (folder / "wal").mkdir()
    (folder / "wal" / "file").write_bytes(b"x")
    (folder / "wal" / "link").symlink_to("file")
print([(f.name, f.stat().st_size) for f in sorted(folder.rglob("*")) if f.is_file()])
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "[('file', 0), ('link', 0)]", run.stderr
    assert list((tmp_path / "made").iterdir()) == []


def test_file_system_is_that_of_the_deepest_mount() -> None:
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /data\\040disk xfs rw 0 0\n"
    assert filesystem(Path("/home/me"), mounts) == ("ext4", "/dev/a")
    assert filesystem(Path("/tmp/x/y"), mounts) == ("tmpfs", "tmpfs")
    assert filesystem(Path("/data disk/x"), mounts) == ("xfs", "/dev/b")
    assert filesystem(Path("/tmpfoo"), mounts) == ("ext4", "/dev/a")


def test_json_and_back() -> None:
    figures = [Figure("rate", "1/s", [3.0, 1.0], 2.0, benchmark="hot", note="two")]
    text = report.to_json(figures, {"cpu": "x"}, {"repeat": 2})
    assert json.loads(text)["figures"][0]["median"] == 2.0
    assert report.from_json(text) == (figures, {"cpu": "x"})


def test_markdown_goes_between_the_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n")
    figures = [Figure("rate", "1/s", [1_500_000.0, 1_400_000.0], 1_000_000, benchmark="hot")]
    report.put_between_marks(readme, report.markdown(figures, {"cpu": "x"}))
    text = readme.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| hot | rate | 1,450,000 (1,400,000 to 1,500,000) | 1/s | ≥ 1,000,000 | yes |" in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="needs one"):
        report.put_between_marks(readme, "x")


def test_the_readme_has_the_marks() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert [text.count(f"<!-- results: {which} -->") for which in ("begin", "end")] == [1, 1]


def test_answers_whole_and_byte_by_byte() -> None:
    parser = ResponseParser()
    assert parser.feed(_ANSWER) == (201, b'{"conv_seq":7}')
    answers = [parser.feed(_ANSWER[i : i + 1]) for i in range(len(_ANSWER))]
    assert answers[:-1] == [None] * (len(_ANSWER) - 1)
    assert answers[-1] == (201, b'{"conv_seq":7}')
    for cut in range(1, len(_ANSWER)):
        assert parser.feed(_ANSWER[:cut]) is None
        assert parser.feed(_ANSWER[cut:]) == (201, b'{"conv_seq":7}')


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        _ANSWER + b"HTTP",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000,
    ],
)
def test_what_is_no_answer_is_an_error(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"HTTP|Content-Length|after the answer|does not end"):
        ResponseParser().feed(bad)


def test_the_head_in_any_case() -> None:
    assert parse_head(b"HTTP/1.1 503 Service Unavailable\r\nx-content-length: 9\r\nCONTENT-LENGTH:  12 \r\na: b") == (
        503,
        12,
    )


def test_single_request_and_its_check() -> None:
    source = Single(_TARGET, "room-000001")
    first, second = bytes(source.next()), bytes(source.next())
    assert first != second
    head, _, body = first.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert head.startswith(b"POST /v1/conversations/room-000001/messages HTTP/1.1\r\n")
    assert len(json.loads(body)["body"]) == BODY_BYTES
    source.check(201, b'{"conv_seq":12}')
    for status, answer in ((200, b'{"conv_seq":12}'), (201, b"{}"), (201, b'{"conv_seq":0}'), (503, b"")):
        with pytest.raises(BadAnswerError):
            source.check(status, answer)


def test_json_batch_is_json_with_new_ids() -> None:
    source = JsonBatch(_TARGET, conversation_names(3), 7)
    seen: set[str] = set()
    for _ in range(3):
        head, _, body = bytes(source.next()).partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        messages = json.loads(body)["messages"]
        assert len(messages) == 7
        assert {len(m["body"]) for m in messages} == {BODY_BYTES}
        assert {m["conv_id"] for m in messages} <= set(conversation_names(3))
        seen |= {m["client_msg_id"] for m in messages}
    assert len(seen) == 21


def test_json_batch_check() -> None:
    def answer(seqs: list[int], failed: int = 0) -> bytes:
        results = [{"conv_id": "a", "conv_seq": s} for s in seqs]
        content = {"results": results, "created": 3 - failed, "duplicates": 0, "failed": failed}
        return json.dumps(content, separators=(",", ":")).encode()

    JsonBatch(_TARGET, ["a"], 3).check(200, answer([1, 2, 3]))
    for status, body in ((503, b""), (200, answer([1, 2])), (200, answer([1, 2, 3], 1)), (200, answer([1, 2, 2]))):
        with pytest.raises(BadAnswerError):
            JsonBatch(_TARGET, ["a"], 3).check(status, body)


def test_arrow_batch_and_its_check() -> None:
    import pyarrow as pa

    def answer(status: list[int], seqs: list[int]) -> bytes:
        batch = pa.RecordBatch.from_pydict({"status": pa.array(status, pa.uint16()), "conv_seq": seqs})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()

    source = ArrowBatch(_TARGET, ["a"], 2)
    head, _, body = bytes(source.next()).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    check_batch(from_ipc(body))
    source.check(200, answer([201, 201], [4, 5]))
    for bad in (answer([201, 503], [4, -1]), answer([201], [4]), answer([201, 201], [0, 1])):
        with pytest.raises(BadAnswerError):
            source.check(200, bad)
    with pytest.raises(BadAnswerError):
        source.check(503, b"")


def test_a_source_for_each_connection() -> None:
    made = sources("single", _TARGET, 4, 2, 1)
    rooms = [bytes(s.next()).split(b"/")[3] for s in made]
    assert rooms == [b"room-000000", b"room-000001", b"room-000000", b"room-000001"]
    assert [s.rows for s in sources("json", _TARGET, 2, 1, 5)] == [5, 5]


def test_batches_are_valid_and_never_repeat_an_id() -> None:
    made = Batches(50, conversation_names(20), seed=3, templates=2)
    seen: set[bytes] = set()
    for _ in range(5):
        batch = from_ipc(made.next().tobytes())
        check_batch(batch)
        seen |= set(batch.column("client_msg_id").to_pylist())
        assert set(batch.column("conv_id").to_pylist()) == set(batch.column("conv_id").dictionary.to_pylist())
    assert len(seen) == 250


def test_bodies_have_their_size() -> None:
    made = bodies(30, np.random.default_rng(1)).to_pylist()
    assert {len(b) for b in made} == {BODY_BYTES}
    assert all(b.isascii() and b.decode().isprintable() for b in made)


def test_only_acks_of_new_messages_count() -> None:
    none = np.empty(0, np.int64)
    good = Appended(3, 1, 2, 0, 0, 5, 7, None)
    assert check_ack(good, 3) == 3
    with pytest.raises(RuntimeError, match="not an ack"):
        check_ack(good, 4)
    with pytest.raises(RuntimeError, match="not an ack"):
        check_ack(Refusal(Refused.BUSY, "full"), 3)
    with pytest.raises(RuntimeError, match="not an ack"):
        check_ack(Appended(3, 1, 2, 0, 0, 5, 7, Firsts(none, none, none, none, none, none)), 3)
    with pytest.raises(RuntimeError, match="without numbers"):
        check_ack(Appended(3, 1, 2, 0, 0, np.array([0, 1, 2]), 7, None), 3)
