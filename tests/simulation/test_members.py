"""Who asks for members asks until all is healed, and only so often after that."""

from __future__ import annotations

from typing import cast

import pytest

from tests.simulation import members
from tests.simulation.kernel import Process


class _Sleeper:
    """A process for which no time passes."""

    async def sleep(self, _us: int) -> None:
        """Of `Process`."""


async def test_whoever_is_away_is_asked_until_all_is_healed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    long = 10 * members._TRIES_MAX

    async def no_answer(*_: object) -> None:
        asked.append(True)

    monkeypatch.setattr(members, "call", no_answer)
    ask = members.removal("room", "bob")
    process = cast("Process", _Sleeper())
    assert not await members.change(process, lambda: None, lambda: len(asked) >= long, ask)
    assert len(asked) == long + members._TRIES_MAX
