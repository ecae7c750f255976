"""Pulls of 50 messages through engines: from hot and small conversations, the latest ones and at a random place.

Every page is checked: consecutive numbers, no holes. Owns the pulls. Does not own the writes beside them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from benchmarks.engine import WARMUP_S
from benchmarks.harness import Figure, percentile, say
from benchmarks.history_load import EngineUser, HistoryLoader, room
from benchmarks.history_system import RunningSystem, actors_of
from imray.core.pages import PageAsk
from imray.core.replies import Refusal

PAGE_ROWS = 50
RATE_PER_S = 50.0
LINES = 16
P50_MS_MAX = 10.0
P99_MS_MAX = 50.0
SATURATED_PER_S_MIN = 500.0
HOT = 10
"""So many of the busiest conversations are hot; small ones are of the less busy half."""
_SMALL = 200
_COLD = 100
_AT_ONCE = 32
_PULLERS = 2
_WARM_PULLS = 200
_GRACE_S = 120.0
_SEED = 3


@dataclass(frozen=True)
class Pull:
    """One page that is asked for."""

    form: str
    ask: PageAsk


def pulls_of(heads: dict[str, int], size: str, count: int, seed: int) -> list[Pull]:
    """`count` pulls of conversations with these heads, half of them of the latest messages, half at a random place."""
    rng = np.random.default_rng(seed)
    names = list(heads)
    found: list[Pull] = []
    for i in range(count):
        name = names[int(rng.integers(len(names)))]
        if i % 2:
            ask = PageAsk(name, 0, None, PAGE_ROWS, True)
            found.append(Pull(f"latest {PAGE_ROWS}, {size}", ask))
        else:
            after = int(rng.integers(0, max(1, heads[name] - PAGE_ROWS + 1)))
            found.append(Pull(f"random {PAGE_ROWS}, {size}", PageAsk(name, after, None, PAGE_ROWS, False)))
    return found


def check_page(ask: PageAsk, seqs: np.ndarray, holes: Sequence[object], head: int) -> None:
    """RuntimeError unless a page is what was asked for, of a conversation whose head was `head` some time before."""
    rows = min(ask.limit, head - ask.after)
    low = ask.after + 1
    if ask.descending:
        seqs = seqs[::-1]
        low = max(head - ask.limit + 1, int(seqs[0]) if len(seqs) else 1)
    whole = rows <= len(seqs) <= ask.limit and bool((seqs == np.arange(low, low + len(seqs))).all())
    if not whole or holes:
        raise RuntimeError(f"{ask} of a conversation with {head} messages gave {seqs.tolist()}, {holes}")


class HistoryPuller(EngineUser):
    """Pulls."""

    async def heads(self, names: Sequence[str]) -> dict[str, int]:
        """The last number of each conversation that has messages."""
        found: dict[str, int] = {}
        for at in range(0, len(names), _AT_ONCE):
            some = names[at : at + _AT_ONCE]
            for name, located in zip(some, await asyncio.gather(*map(self.engine.head, some)), strict=True):
                if isinstance(located, Refusal):
                    raise RuntimeError(f"{name}: {located}")
                if located.head:
                    found[name] = located.head
        return found

    async def _pull(self, pull: Pull, head: int) -> None:
        answer = await self.engine.history(pull.ask)
        if isinstance(answer, Refusal):
            raise RuntimeError(f"{pull.ask}: {answer}")
        page = answer[1]
        check_page(pull.ask, page.messages["conv_seq"].to_numpy(), page.holes, head)

    async def one_by_one(self, pulls: Sequence[Pull], heads: dict[str, int]) -> list[float]:
        """Seconds of each."""
        taken: list[float] = []
        for pull in pulls:
            began = time.monotonic()
            await self._pull(pull, heads[pull.ask.conv_id])
            taken.append(time.monotonic() - began)
        return taken

    async def paced(
        self, pulls: Sequence[Pull], heads: dict[str, int], first: float, interval_s: float
    ) -> dict[str, list[float]]:
        """Pulls at first, first + interval, ... whether or not pages come: seconds from when each was due, by form."""
        found: dict[str, list[float]] = {}

        async def one(pull: Pull, when: float) -> None:
            await self._pull(pull, heads[pull.ask.conv_id])
            found.setdefault(pull.form, []).append(time.monotonic() - when)

        waiting: list[asyncio.Task[None]] = []
        for i, pull in enumerate(pulls):
            when = first + i * interval_s
            await asyncio.sleep(max(0.0, when - time.monotonic()))
            waiting.append(asyncio.create_task(one(pull, when)))
        await asyncio.gather(*waiting)
        return found

    async def saturated(
        self, pulls: Sequence[Pull], heads: dict[str, int], lines: int, begin: float, end: float
    ) -> int:
        """Pages between begin and end (monotonic), with `lines` pulls in flight from now on."""
        turns = itertools.cycle(pulls)
        counted = 0

        async def line() -> None:
            nonlocal counted
            while time.monotonic() < end:
                pull = next(turns)
                await self._pull(pull, heads[pull.ask.conv_id])
                counted += begin <= time.monotonic() < end

        await asyncio.gather(*(line() for _ in range(lines)))
        return counted


def measure_pulls(
    system: RunningSystem, conversations: int, load_per_s: float, batch_rows: int, seconds: float
) -> list[Figure]:
    """All of it over a system that was just started: cold, then paced beside writes, then as many as go."""
    how = (system.namespace, system.manifest, system.settings)
    with actors_of(HistoryPuller, _PULLERS, *how) as pullers:
        hot, small = _heads(pullers[0], conversations)
        cold = _cold(pullers[0], hot, small)
        with actors_of(HistoryLoader, 1, *how, conversations) as loaders:
            paced, written = _paced(pullers[0], loaders[0], hot, small, load_per_s / 2, batch_rows, seconds)
        say("pulls as fast as they go")
        alone = _saturated(pullers, hot, small, seconds)
    where = f"{RATE_PER_S:.0f} pulls/s beside {load_per_s / 2:,.0f} messages/s, half of the load's rate; warm"
    figures = cold
    for form in sorted(paced):
        figures.append(_latency(f"{form}: p50", paced[form], 0.5, P50_MS_MAX, where))
        figures.append(_latency(f"{form}: p99", paced[form], 0.99, P99_MS_MAX, where))
    figures.append(Figure("writes beside the pulls: ack, p99", "ms", [1e3 * percentile(written, 0.99)], note=where))
    note = f"{LINES} pulls in flight, no writes, hot and small conversations mixed"
    figures.append(Figure("pulls, saturated", "pages/s", [alone], SATURATED_PER_S_MIN, note=note))
    return figures


def _latency(name: str, seconds: list[float], share: float, target: float | None, note: str) -> Figure:
    note = f"{len(seconds)} pulls; {note}"
    return Figure(name, "ms", [1e3 * percentile(seconds, share)], target, more_is_better=False, note=note)


def _heads(puller: Any, conversations: int) -> tuple[dict[str, int], dict[str, int]]:
    """The heads of the hot conversations, and of some small ones."""
    hot = [room(rank) for rank in range(min(HOT, max(1, conversations // 20)))]
    rng = np.random.default_rng(_SEED)
    ranks = rng.integers(conversations // 2, conversations, _SMALL)
    small = [room(rank) for rank in sorted(set(ranks.tolist()))]
    found: list[dict[str, int]] = ray.get([puller.heads.remote(names) for names in (hot, small)])
    if not found[0] or not found[1]:
        raise RuntimeError("too few messages: no small conversation has any")
    say(f"heads: hot {min(found[0].values()):,} to {max(found[0].values()):,}, small up to {max(found[1].values()):,}")
    return found[0], found[1]


def _cold(puller: Any, hot: dict[str, int], small: dict[str, int]) -> list[Figure]:
    """The first pulls of processes that have read nothing."""
    heads = hot | small
    pulls = [*pulls_of(small, "small", _COLD // 2, _SEED), *pulls_of(hot, "hot", _COLD // 2, _SEED)]
    order = np.random.default_rng(_SEED).permutation(len(pulls))
    taken: list[float] = ray.get(puller.one_by_one.remote([pulls[i] for i in order], heads))
    note = "fresh reader processes, one after the other, no writes; the page cache is not dropped: that takes root"
    return [
        Figure("the very first pull", "ms", [1e3 * taken[0]], note=note),
        _latency("cold pulls: p50", taken[1:], 0.5, None, note),
        _latency("cold pulls: p99", taken[1:], 0.99, None, note),
    ]


def _paced(
    puller: Any,
    loader: Any,
    hot: dict[str, int],
    small: dict[str, int],
    rate: float,
    batch_rows: int,
    seconds: float,
) -> tuple[dict[str, list[float]], list[float]]:
    """Latencies of pulls by form, and of the requests that were written beside them."""
    heads = hot | small
    say(f"warming up, then pulls beside {rate:,.0f} messages/s for {seconds:.0f} s")
    ray.get(puller.one_by_one.remote(_mixed(hot, small, _WARM_PULLS, _SEED + 1), heads))
    first = time.monotonic() + 1.0
    interval_s = batch_rows / rate
    count = max(1, int((WARMUP_S + seconds) / interval_s))
    writing = loader.pace.remote(batch_rows, first, interval_s, count)
    pulls = _mixed(hot, small, int(RATE_PER_S * seconds), _SEED + 2)
    found = puller.paced.remote(pulls, heads, first + WARMUP_S, 1 / RATE_PER_S)
    latencies, written = ray.get([found, writing], timeout=WARMUP_S + seconds + _GRACE_S)
    return latencies, written


def _mixed(hot: dict[str, int], small: dict[str, int], count: int, seed: int) -> list[Pull]:
    """Of hot and small conversations in turn, all forms."""
    pairs = zip(pulls_of(hot, "hot", count // 2, seed), pulls_of(small, "small", count // 2, seed), strict=True)
    return [pull for pair in pairs for pull in pair]


def _saturated(pullers: Sequence[Any], hot: dict[str, int], small: dict[str, int], seconds: float) -> float:
    """Pages a second."""
    begin = time.monotonic() + WARMUP_S
    end = begin + seconds
    lines = LINES // len(pullers)
    runs = [
        puller.saturated.remote(_mixed(hot, small, 2000, _SEED + i), hot | small, lines, begin, end)
        for i, puller in enumerate(pullers)
    ]
    return float(sum(ray.get(runs, timeout=seconds + _GRACE_S))) / seconds
