"""The comparison with other systems: its work, its judgement, its tables. Runs none of the systems."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import report
from benchmarks.harness import ROOT, Options
from benchmarks.peers import __main__ as command
from benchmarks.peers import chart, results, run, table
from benchmarks.peers.catalogue import keys, peer_of, peers, row_of
from benchmarks.peers.daemons import Daemon, dead, descendants, disk_bytes, needs
from benchmarks.peers.judge import Stored, Verdict, judge
from benchmarks.peers.peer import Row
from benchmarks.peers.results import Killed, Record
from benchmarks.peers.work import CONV, NO_NUMBER, Shape, Source, WrongAnswerError
from imray.log.schema import check_batch, from_ipc
from tests.support.process import until


def _ids(*numbers: int) -> np.ndarray:
    """Ids that differ in their last byte only, zero bytes at the end included."""
    made = np.zeros((len(numbers), 16), np.uint8)
    made[:, 15] = numbers
    return made


def _seqs(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_at_most_so_many_in_flight() -> None:
    assert Shape(2_500, 2).rows == 2_500
    for rows, in_flight in ((2_500, 3), (0, 1), (1, 0)):
        with pytest.raises(ValueError, match="in flight"):
            Shape(rows, in_flight)


@pytest.mark.parametrize("rows", [1, 40, 100, 2_500])
def test_one_send_in_a_hundred_is_a_retry(rows: int) -> None:
    source, sent, retries, seen = Source(rows, 7), 0, 0, set()
    before = np.zeros(rows, np.int64)
    for turn in range(400):
        batch = source.next()
        assert len(batch.bodies) == len(batch.id_list) == rows
        fresh = set(batch.id_list[batch.retries :])
        assert len(fresh) == rows - batch.retries
        assert not fresh & seen
        assert set(batch.id_list[: batch.retries]) <= seen
        seen |= fresh
        # a retry gets its first number again, as it stands at the same place in the batch before
        numbers = np.arange(rows) + 1 + (0 if batch.retries == rows else turn * rows)
        numbers[: batch.retries] = before[: batch.retries]
        before = numbers
        source.acked(batch, numbers, once=True, numbered=True)
        sent, retries = sent + rows, retries + batch.retries
    assert 0.005 < retries / sent < 0.015


def test_the_arrow_stream_is_the_batch() -> None:
    source = Source(50, 1)
    source.next()
    batch = source.next()
    decoded = from_ipc(batch.arrow.tobytes())
    check_batch(decoded)
    assert decoded.column("client_msg_id").to_pylist() == batch.id_list
    assert decoded.column("body").to_pylist() == batch.bodies
    assert set(decoded.column("conv_id").to_pylist()) == {CONV}
    assert {len(body) for body in batch.bodies} == {100}


def test_wrong_answers() -> None:
    source = Source(100, 1)
    first = source.next()
    for numbers in (np.arange(1, 100), np.arange(100), np.full(100, 5)):
        with pytest.raises(WrongAnswerError):
            source.acked(first, numbers, once=True, numbered=True)
    source.acked(first, np.arange(1, 101), once=True, numbered=True)
    second = source.next()
    assert second.retries == 2
    with pytest.raises(WrongAnswerError, match="retry"):
        source.acked(second, np.arange(101, 201), once=True, numbered=True)
    source.acked(second, np.arange(101, 201), once=False, numbered=True)


def test_all_is_well() -> None:
    stored = Stored(_ids(1, 2, 3), _seqs(1, 2, 3))
    # an id that was acked twice, and one that is there without an ack
    assert judge(_ids(1, 2, 1), _seqs(1, 2, 1), stored, True) == Verdict(2, 3, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (Stored(_ids(1, 3), _seqs(1, 3)), Verdict(3, 2, 1, 0, 0, 1)),
        (Stored(_ids(1, 3), _seqs(1, 3), ((2, 2),)), Verdict(3, 2, 1, 0, 0, 0)),
        (Stored(_ids(1, 2, 3, 2), _seqs(1, 2, 3, 4)), Verdict(3, 4, 0, 1, 0, 0)),
        (Stored(_ids(2, 1, 3), _seqs(1, 2, 3)), Verdict(3, 3, 0, 0, 2, 0)),
        (Stored(_ids(1, 2, 3, 4), _seqs(1, 2, 3, 9)), Verdict(3, 4, 0, 0, 0, 5)),
        (Stored(_ids(), _seqs()), Verdict(3, 0, 3, 0, 0, 0)),
    ],
    ids=["lost", "lost but explained", "twice", "renumbered", "gap", "everything lost"],
)
def test_what_is_wrong_is_counted(stored: Stored, expected: Verdict) -> None:
    assert judge(_ids(1, 2, 3), _seqs(1, 2, 3), stored, True) == expected


def test_without_numbers() -> None:
    none = _seqs(*[NO_NUMBER] * 2)
    assert judge(_ids(1, 2), none, Stored(_ids(2, 2), none), False) == Verdict(2, 2, 1, 1, 0, 0)


def _row(key: str, durable: bool = True, once: bool = True, ours: bool = False) -> Row:
    return Row(key, f"title of <{key}>", "an ack", Shape(10, 2), durable, once, ours=ours)


def _sample(rate: float) -> dict[str, float]:
    return {"per_second": rate, "p50_ms": 1.5, "p99_ms": 20.0, "cpu_s": 3.25, "senders_cpu_s": 1.0, "disk_bytes": 120.0}


@pytest.fixture
def records() -> list[Record]:
    killed = Killed(Verdict(10_000, 10_001, 0, 0, 0, 0), 1.25, 3)
    loose = Killed(Verdict(10_000, 7_000, 3_000, 5, 0, 0), 0.5, 9)
    return [
        Record(_row("ours", ours=True), {1: [_sample(1000), _sample(500)], 4: [_sample(4000), _sample(4000)]}, killed),
        Record(
            _row("slow"), {1: [_sample(100), _sample(50)], 4: [_sample(500), {}]}, killed, failures=["4 senders: E"]
        ),
        Record(_row("raw", durable=False, once=False), {1: [_sample(2000), _sample(1000)], 4: [{}, {}]}, loose),
        Record(_row("absent"), missing="Debian package absent"),
    ]


def test_records_travel_as_json(records: list[Record]) -> None:
    text = results.to_json(records, {"cpu": "x"}, {"senders": [1, 4]})
    assert results.from_json(text) == (records, {"cpu": "x"}, {"senders": [1, 4]})


def test_ratios_are_of_neighbours(records: list[Record]) -> None:
    ours, slow, raw, _ = records
    assert results.times(ours, slow, 1) == [10.0, 10.0]
    assert results.times(ours, slow, 4) == [8.0], "the turn that failed is left out"
    assert results.times(ours, raw, 4) == []


def test_targets(records: list[Record]) -> None:
    found = results.targets(records, [1, 4])
    assert [(f.values, f.target, f.met) for f in found] == [
        ([10.0, 10.0], 10.0, True),
        ([8.0], 10.0, False),
        ([0.5, 0.5], 1.0, False),
    ]
    assert results.targets(records[1:], [1, 4]) == []


def test_tables(records: list[Record], tmp_path: Path) -> None:
    text = table.markdown(records, [1, 4], 4, {"cpu": "x"})
    assert "| title of <slow> | yes | 75.00 | 500.0 | 1.50 / 20.00 | 3.25 | 120.0 | – | 10.0 / 8.0 |" in text
    assert "| title of <raw> | no | 1,500 | – | – / – | – | – | – | 0.5 / – |" in text
    assert "| title of <raw> | an ack | 10,000 | 3,000 | 5 | 0 | 0 | 0.5 |" in text
    assert "Not run: title of <absent>: install Debian package absent." in text
    assert "FAILED: title of <slow>: 4 senders: E." in text
    assert "| 8.00 (8.00 to 8.00) | ≥ 10 | NO |" in text
    short = table.summary(records, 4).splitlines()
    assert (
        short[0] == "| system | durable before ack | messages/s, 4 senders | p50 / p99 ms | imray is × times as fast |"
    )
    assert "| title of <slow> | yes | 500.0 | 1.50 / 20.00 | 8.0 |" in short
    assert len(short) == 2 + len([r for r in records if r.samples])
    readme = tmp_path / "README.md"
    marks = [f"<!-- {name}: {which} -->\nkeep" for name in ("results", "peers") for which in ("begin", "end")]
    readme.write_text("\n".join(marks))
    report.put_between_marks(readme, text, "peers")
    assert readme.read_text().count("keep") == 3
    assert text in readme.read_text()
    with pytest.raises(ValueError, match="needs one"):
        report.put_between_marks(readme, text, "other")


def test_the_chart_is_svg(records: list[Record]) -> None:
    drawn = ElementTree.fromstring(chart.svg(records, [1, 4]))
    texts = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "title of <slow>" in texts
    assert "4,000" in texts
    assert "title of <absent>" not in texts
    bars = [e for e in drawn.iter("{http://www.w3.org/2000/svg}rect") if e.get("x") == "330"]
    assert len(bars) == 5, "a bar for each figure that there is"


def test_the_readmes_have_a_place_for_it() -> None:
    for page in ("README.md", "benchmarks/README.md"):
        text = (ROOT / page).read_text()
        assert [text.count(f"<!-- peers: {which} -->") for which in ("begin", "end")] == [1, 1], page
        assert "peers.svg" in text, page


def test_every_row_has_a_system() -> None:
    assert len(set(keys())) == len(keys()) == sum(len(peer.ROWS) for peer in peers())
    ours = [row_of(key) for key in keys() if row_of(key).ours]
    assert {row.group for row in ours} == {row_of(key).group for key in keys()}, "each group has its reference"
    assert peer_of(ours[0].key).missing() is None


def test_what_is_missing_is_named() -> None:
    assert needs({"a program": True}, {"numpy": "numpy"}) is None
    said = needs({"Debian package x": None}, {"no-such": "no_such_module", "numpy": "numpy"})
    assert said == "Debian package x; no-such (Python packages; `make bench-peers` installs them)"


def test_one_that_fails_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_options: Options, key: str, senders: int) -> dict[str, float]:
        if key == "bad":
            raise RuntimeError("no answer")
        return _sample(100.0 * senders)

    monkeypatch.setattr(run, "measure", measure)
    good, bad, absent = Record(_row("good")), Record(_row("bad")), Record(_row("absent"), missing="it")
    command.measure([good, bad, absent], [1, 4], Options(tmp_path, 2, 1.0), kill=False)
    assert good.figure(4, "per_second") == 400.0
    assert bad.figure(4, "per_second") is None
    assert bad.failures == ["1 senders: RuntimeError: no answer", "4 senders: RuntimeError: no answer"] * 2
    assert not absent.samples
    assert json.loads(results.to_json([good, bad, absent], {}, {}))["rows"][1]["samples"]["1"] == [{}, {}]


_FAMILY = "import subprocess; open('up', 'w'); subprocess.run(['sleep', '60'])"


def test_a_kill_takes_the_whole_family(tmp_path: Path) -> None:
    daemon = Daemon([sys.executable, "-c", _FAMILY], tmp_path, (tmp_path / "up").exists)
    assert daemon._process is not None
    pid = daemon._process.pid
    until(lambda: len(descendants(pid)) == 1, "it has started another")
    family = [pid, *descendants(pid)]
    daemon.kill()
    assert all(dead(p) for p in family)
    daemon.start()
    again = daemon._process.pid
    assert again != pid
    daemon.stop()
    assert dead(again)


def test_one_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        Daemon([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path, lambda: False)


def test_disk_bytes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    before = disk_bytes(tmp_path)
    (tmp_path / "sub" / "file").write_bytes(b"x" * 100_000)
    assert 100_000 <= disk_bytes(tmp_path) - before <= 200_000
