"""What must hold after a schedule: the checker's verdict, the retries, and that the logs fold to the live state."""

from __future__ import annotations

from typing import Any

from imray.core.sequencer import locate, plan
from imray.core.state import ShardState
from tests.checker.invariants import judge
from tests.simulation.clients import Client
from tests.simulation.disk import CONVS, SEED, Confirmer, Disk, Msg, rows_of
from tests.simulation.kernel import LivenessError
from tests.simulation.recovery import Interval, replay, restore
from tests.simulation.world import World


class ViolationError(AssertionError):
    """A promise was broken."""


def verify(world: World) -> None:
    """Judge a schedule that has come to rest."""
    world.ask(_final_reading(world))
    report = judge(world.seen)
    if not report.ok:
        raise ViolationError("\n" + report.to_text())
    state, intervals = world.home.committer.state, world.home.committer.intervals  # type: ignore[union-attr]
    for slot in sorted(state.partitions):
        world.home.grants._read_tail(slot)  # type: ignore[union-attr] # a fence whose writer has not registered
    first = {(CONVS.index(name), int(a.id[1:])): a.seq for name, c in world.seen.items()
             for a in c.answers if a.kind == "ack"}  # fmt: skip
    live = _view(state, intervals, first, world.disk)
    for what, other in (("from nothing", ShardState(SEED)), ("from the checkpoint", restore(world.disk))):
        replay(world.disk, other)
        for slot in sorted(other.partitions):
            replay(world.disk, other, slot)
        folded = _view(other, other.sealed, first, world.disk)  # type: ignore[arg-type]
        for name, value in live.items():
            if folded[name] != value:
                raise ViolationError(f"{name}: live {value}, the logs folded {what} {folded[name]}")
    world.ask(_retries(world, first))


async def _final_reading(world: World) -> bool:
    reader = Client(world.gateways[0], "reader", world.seen)
    for conv in list(world.seen):
        for _ in range(50):
            if await reader.read(world.gateways[0], conv, 0, 1 << 40, final=True) is not None:
                break
        else:
            raise LivenessError(f"{conv} cannot be read")
        for _ in range(3):
            await reader.read(world.gateways[0], conv, world.sim.rng.randrange(20), world.sim.rng.choice([2, 1 << 40]))
    return True


async def _retries(world: World, first: dict[tuple[int, int], int]) -> bool:
    """Every id that was acked, once more by any way: its first number."""
    rng = world.sim.rng
    final = {m: int(payload[1:]) for name, c in world.seen.items() for r in c.reads if r.final
             for seq, text, payload in r.rows for m in [(CONVS.index(name), int(text[1:]))]}  # fmt: skip
    for slot in world.directory:
        again = [Msg(conv, n, final[conv, n]) for conv, n in sorted(first) if rng.random() < 0.7 or slot == 0]
        again = [m for m in again if slot == 0 or m.conv == 0]
        if not again:
            continue
        client = Client(world.gateways[0], f"retry{slot}", {})
        for _ in range(50):
            if await client.send(world.gateways[0], tuple(again), slot):
                break
            await world.gateways[0].sleep(10_000)
        else:
            raise LivenessError(f"retries through slot {slot} have no answer")
        got = {(m.conv, m.id): client.acked.get((m.conv, m.id)) for m in again}
        wrong = {m: (seq, first[m]) for m, seq in got.items() if seq != first[m]}
        if wrong:
            raise ViolationError(f"retries through slot {slot} (got, acked first): {wrong}")
    return True


def _view(
    state: ShardState, intervals: list[Interval], first: dict[tuple[int, int], int], disk: Disk
) -> dict[str, Any]:
    """A state as plain values, by names."""
    c, hot = state.conversations, {}
    for conv, g in state.hot.items():
        hot[c.name(conv)] = (g.partitions, g.ceiling, g.stable, g.by_rate, list(g.done))
    spans = {}
    for i in range(c.count):
        name = c.name(i)
        old = [p[1:] for interval in intervals for p in interval.postings if p[0] == name]
        new = state.frozen_postings.spans(i, 1, 1 << 60) + state.postings.spans(i, 1, 1 << 60)
        spans[name] = sorted(old + new)
    view: dict[str, Any] = {
        "heads": {c.name(i): int(c.heads[i]) for i in range(c.count)},
        "stable": {c.name(i): int(c.stable[i]) for i in range(c.count)},
        "hot": hot,
        "postings": spans,
        "log": state.log,
        "topics": state.partitions,
    }
    if first:
        rows = rows_of([Msg(conv, n) for conv, n in sorted(first)])
        located = locate(state, rows)
        planned = plan(state, rows, located, Confirmer(disk).confirm(rows, located) if located.maybe else {})
        known = ["status", "seq", "place", "row_in_segment", "epoch", "server_ts"]
        view |= {f"ids: {k}": getattr(planned, k).tolist() for k in known}
    return view
