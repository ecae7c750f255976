"""Fault 1: SIGKILL at each point of a put: of a commit, of a fence, of a checkpoint's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.batches import Msg, commit, msg_id, open_committer
from tests.support.client import Client
from tests.support.driver import STEPS
from tests.support.process import Died, Driver

_LANDED = {"linked", "folder synced", "before the answer"}


@pytest.mark.parametrize("nth", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", STEPS)
def test_killed_in_a_commit(tmp_path: Path, step: str, nth: int) -> None:
    client = Client()
    batches = [[["a", 2 * i, "x"], ["b", 2 * i + 1, "y"]] for i in range(5)]
    with Driver(tmp_path / "data") as one:
        one.ask("arm", step=step, at=nth)
        for batch in batches[: nth - 1]:
            assert client.send(one, batch)
        doomed = [*batches[0], *batches[nth - 1]] if nth > 1 else batches[0]
        with pytest.raises(Died):
            client.send(one, doomed)
        assert one.ended() == -9
    with Driver(tmp_path / "data") as two:
        rows = client.send(two, doomed)
        assert {r[0] for r in rows[-2:]} == {"duplicate" if step in _LANDED else "new"}
        assert [r[1] for r in rows[-2:]] == [nth, nth]
        for batch in batches:
            assert client.send(two, batch)
        client.read(two)
    client.check()


@pytest.mark.parametrize("step", ["written", "linked", "before the answer"])
def test_killed_in_the_fence(tmp_path: Path, step: str) -> None:
    client = Client()
    (row,) = commit(open_committer(tmp_path / "data"), [Msg("a", msg_id(1), b"x")])
    assert row.seq == 1
    with Driver(tmp_path / "data", start=False) as two:
        two.go(step=step)
        assert two.ended() == -9
    with Driver(tmp_path / "data") as three:
        assert three.started["epoch"] == (3 if step in _LANDED else 2)
        assert client.send(three, [["a", 1, "x"], ["a", 2, "y"]]) == [["duplicate", 1, 2], ["new", 2, 2]]
        client.read(three)
    client.check()


def _send_on(client: Client, driver: Driver) -> None:
    for i in range(10_000):
        client.send(driver, [["a", 2 * i, "x"], ["b", 2 * i + 1, "y"]])


@pytest.mark.parametrize(
    ("prefix", "at", "step"),
    [
        ("sealed/", 1, "linked"),
        ("sealed/", 2, "written"),
        ("sealed/", 3, "linked"),
        ("checkpoint/", 1, "written"),
        ("checkpoint/", 1, "linked"),
    ],
)
def test_killed_in_a_checkpoint(tmp_path: Path, prefix: str, at: int, step: str) -> None:
    client = Client()
    with Driver(tmp_path / "data", checkpoint_ids_max=4) as one:
        one.ask("arm", step=step, at=at, prefix=prefix)
        with pytest.raises(Died):
            _send_on(client, one)
    with Driver(tmp_path / "data", checkpoint_ids_max=4) as two:
        client.retry_all(two)
        client.read(two)
        assert client.send(two, [["a", 1_000_000, "z"]])
        client.retry_all(two)
        client.read(two)
    client.check()
