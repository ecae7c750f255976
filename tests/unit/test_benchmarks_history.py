"""The tools of the history's benchmark: the skew, the counting of files and lag, the checks of pages and answers, and
the maker of many segments. Measures nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer

from analytics import audit
from benchmarks.__main__ import check_names
from benchmarks.harness import Figure, Options
from benchmarks.history import Form, form_of
from benchmarks.history_audits import PLANTED, plant, violations
from benchmarks.history_folder import REST, FilesOfKind, segments_of, survey, total
from benchmarks.history_ids import check_duplicates
from benchmarks.history_load import SkewedMessages, batch_of, check_new, marks_of, room, rooms_of
from benchmarks.history_pulls import check_page, pulls_of
from benchmarks.history_restart import flat_head, flat_line
from imray.core.columns import RowStatus
from imray.core.log_progress import LogProgress
from imray.core.pages import PageAsk
from imray.core.replies import Appended, Firsts, Refusal, Refused
from imray.core.routing import shard_of
from imray.log.reader import read_log
from imray.log.schema import check_batch, id_words
from imray.log.store import LocalStore
from tests.support.many_segments import make_segments


def appended(numbers: list[int], firsts: Firsts | None = None) -> Appended:
    return Appended(len(numbers), 1, 1, 0, 0, np.array(numbers), 0, firsts)


def firsts_of(statuses: list[RowStatus]) -> Firsts:
    zeros = np.zeros(len(statuses), np.int64)
    status = np.array(statuses, np.uint8)
    return Firsts(np.arange(len(statuses)), status, zeros, zeros.astype(np.uint32), zeros, zeros)


def test_the_nth_conversation_gets_an_nth_of_the_first() -> None:
    ranks = SkewedMessages(1000, 2, seed=1).ranks(200_000)
    counts = np.bincount(ranks, minlength=1000)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.15)
    assert counts[0] / len(ranks) == pytest.approx(1 / (1 / np.arange(1, 1001)).sum(), rel=0.05)


def test_a_request_has_a_valid_batch_for_each_shard_and_ids_that_differ() -> None:
    messages = SkewedMessages(500, 3, seed=1)
    requests = [messages.batches(400), messages.batches(400)]
    ids = set()
    for batches in requests:
        assert sum(batch.num_rows for batch in batches.values()) == 400
        for shard, batch in batches.items():
            check_batch(batch)
            assert {shard_of(name, 3) for name in batch.column("conv_id").dictionary.to_pylist()} == {shard}
            ids |= set(map(tuple, id_words(batch.column("client_msg_id")).tolist()))
    assert len(ids) == 800


def test_members_of_a_conversation_are_few() -> None:
    batches = SkewedMessages(100, 1, seed=1).batches(5000)
    senders: dict[str, set[str]] = {}
    for conv, sender in zip(*(batches[0].column(name).to_pylist() for name in ("conv_id", "sender")), strict=True):
        senders.setdefault(conv, set()).add(sender)
    assert {len(found) for found in senders.values()} <= set(range(1, 9))
    assert len(senders[room(0)]) == 8


def test_marks_are_the_same_each_time() -> None:
    assert marks_of(["a", "b"], 5, seed=7) == marks_of(["a", "b"], 5, seed=7)
    assert {len(send.client_msg_id) for send in marks_of(["a"], 3, seed=7)} == {16}
    check_batch(batch_of(marks_of(["a", "b"], 5, seed=7)))
    assert {shard_of(name, 4) for name in rooms_of(2, 4, 10, "x")} == {2}


def test_only_acks_of_new_messages_count() -> None:
    check_new(appended([1, 2]), 2, again=False)
    check_new(appended([1, 2], firsts_of([RowStatus.DUPLICATE])), 2, again=True)
    for wrong in (appended([1, 2], firsts_of([RowStatus.DUPLICATE])), appended([0, 1]), appended([1])):
        with pytest.raises(RuntimeError, match="not an ack"):
            check_new(wrong, 2, again=False)


def test_old_ids_must_all_be_duplicates_with_their_first_numbers() -> None:
    good = [RowStatus.DUPLICATE] * 2
    check_duplicates(appended([4, 9], firsts_of(good)), [4, 9])
    with pytest.raises(RuntimeError, match="other numbers"):
        check_duplicates(appended([4, 8], firsts_of(good)), [4, 9])
    for wrong in (firsts_of([RowStatus.DUPLICATE, RowStatus.WAITING]), firsts_of(good[:1]), None):
        with pytest.raises(RuntimeError, match="not all"):
            check_duplicates(appended([4, 9], wrong), [4, 9])
    with pytest.raises(RuntimeError, match="no answer"):
        check_duplicates(Refusal(Refused.BUSY, "later"), [4])


LATEST = PageAsk("a", 0, None, 5, True)
RANDOM = PageAsk("a", 10, None, 5, False)


@pytest.mark.parametrize(
    ("ask", "numbers", "head"),
    [
        (LATEST, [20, 19, 18, 17, 16], 20),
        (LATEST, [22, 21, 20, 19, 18], 20),  # it grew meanwhile
        (LATEST, [3, 2, 1], 3),
        (RANDOM, [11, 12, 13, 14, 15], 20),
        (RANDOM, [11, 12], 12),
        (RANDOM, [11, 12, 13], 12),
    ],
)
def test_a_whole_page_passes(ask: PageAsk, numbers: list[int], head: int) -> None:
    check_page(ask, np.array(numbers), [], head)


@pytest.mark.parametrize(
    ("ask", "numbers", "head"),
    [
        (LATEST, [20, 19, 18, 16, 15], 20),
        (LATEST, [19, 18, 17, 16, 15], 20),
        (LATEST, [20, 19, 18], 20),
        (LATEST, [], 20),
        (RANDOM, [11, 12, 13, 14, 16], 20),
        (RANDOM, [12, 13, 14, 15, 16], 20),
        (RANDOM, [11, 12, 13, 14, 15, 16], 20),
    ],
)
def test_a_page_with_a_number_too_few_or_too_many_does_not(ask: PageAsk, numbers: list[int], head: int) -> None:
    with pytest.raises(RuntimeError, match="gave"):
        check_page(ask, np.array(numbers, np.int64), [], head)


def test_pulls_ask_for_what_is_there() -> None:
    pulls = pulls_of({"a": 1, "b": 1000}, "small", 100, seed=1)
    assert {pull.form for pull in pulls} == {"latest 50, small", "random 50, small"}
    assert all(0 <= pull.ask.after <= {"a": 0, "b": 950}[pull.ask.conv_id] for pull in pulls)


def test_every_file_is_counted_by_its_kind(tmp_path: Path) -> None:
    for name, size in (("wal/shard=0000/a", 10), ("history/_delta_log/b", 20), ("imray.json", 3), ("run/key", 4)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    found = survey(tmp_path)
    assert {kind: part.bytes for kind, part in found.items() if part.files} == {"wal": 10, "history": 20, REST: 7}
    assert (total(found).files, total(found).bytes) == (4, 37)
    assert found["wal"].blocks >= 512
    assert found["sealed"] == FilesOfKind()


def test_how_large_a_run_is() -> None:
    assert form_of(Options(Path())).rows == 1_000_000
    assert form_of(Options(Path(), quick=True)).rows == 200_000
    asked = form_of(Options(Path(), rows=50_000_000))
    assert (asked.conversations, asked.plain_rows) == (500_000, 5_000_000)
    assert Form(30_000, 300, 1.0, 4, 2).plain_rows == 30_000


def test_only_history_knows_rows() -> None:
    check_names(["history"], None, 1000)
    with pytest.raises(typer.BadParameter, match="do not know --rows"):
        check_names(["history", "push"], None, 1000)


def test_a_line_of_the_table_of_sizes() -> None:
    figures = [Figure("start", "s", [3.0, 1.0, 2.0]), Figure("memory", "MiB", [100.0])]
    assert flat_head(figures) == "| messages | start | memory |"
    assert flat_line(figures, 1_000_000) == "| 1,000,000 | 2.00 s | 100.00 MiB |"


def test_made_segments_are_a_log_that_verifies(tmp_path: Path) -> None:
    made = make_segments(tmp_path, 40, shards=2, rows=3, conversations=4, epochs=2)
    assert {name: len(numbers) for name, numbers in segments_of(tmp_path).items()} == {
        "shard=0000": 20,
        "shard=0001": 20,
    }
    heads: dict[str, int] = {}
    for shard in range(2):
        for segment in read_log(LocalStore(tmp_path), shard, LogProgress(), last=20):
            rows = segment.table(["conv_id", "conv_seq"])
            for name, number in zip(*(rows[column].to_pylist() for column in rows.column_names), strict=True):
                assert number == heads.get(name, 0) + 1
                heads[name] = number
    assert heads == {name: made.head(name) for name in made.conversations}
    assert sum(heads.values()) == made.messages == 2 * 18 * 3
    assert audit.run(tmp_path).ok


def test_more_segments_of_too_many_rows_or_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows in a segment"):
        make_segments(tmp_path, 10, rows=1000)
    with pytest.raises(ValueError, match="too few"):
        make_segments(tmp_path, 3, shards=4)
    make_segments(tmp_path, 3)
    with pytest.raises(ValueError, match="not empty"):
        make_segments(tmp_path, 3)


def test_what_is_planted_is_found_and_nothing_else(tmp_path: Path) -> None:
    plant(tmp_path)
    found = violations(audit.run(tmp_path).to_dict())
    assert set(PLANTED) <= set(found) <= {*PLANTED, "order_against_log"}
    assert {found[name] for name in PLANTED} == {1}
