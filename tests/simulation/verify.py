"""What must hold after a schedule: the checker's verdict, the retries, and that the logs fold to the live state."""

from __future__ import annotations

from typing import Any

from imray.core.columns import RowStatus
from imray.core.routing import log_of, segment_of, slot_of
from imray.core.sequencer import locate, plan
from imray.core.state import ShardState
from imray.log import checkpoint
from imray.log.confirm import Confirmer
from imray.log.rows import gather, prepare
from imray.log.schema import from_ipc
from imray.shard.recovery import replay
from imray.shard.recovery_history import HistoryState
from tests.checker.invariants import judge
from tests.simulation.clients import Client
from tests.simulation.deployment import HOME
from tests.simulation.kernel import LivenessError
from tests.simulation.listeners import wrong
from tests.simulation.members import removals
from tests.simulation.messages import CONVS, SEED, Msg, ipc_of
from tests.simulation.store import LookStore
from tests.simulation.world import World


class ViolationError(AssertionError):
    """A promise was broken."""


def verify(world: World) -> None:
    """Judge a schedule that has come to rest."""
    gateway = world.gateways[0]
    world.ask(gateway, _final_reading(world))
    report = judge(world.seen)
    if not report.ok:
        raise ViolationError("\n" + report.to_text())
    final = {name: [row for page in c.reads if page.final for row in page.rows] for name, c in world.seen.items()}
    if complaints := wrong(world.listening, world.ears, final, removals(world.disk)):
        raise ViolationError("I7: " + "\n".join(complaints))
    home = world.home
    assert home.current is not None
    grants = home.current.hot.grants
    state = grants.committer.state
    world.ask(world.directory[HOME], _read_tails(world))
    first = {(CONVS.index(name), int(a.id[1:])): a.seq for name, c in world.seen.items()
             for a in c.answers if a.kind == "ack"}  # fmt: skip
    world.settle()  # checkpoints are made by time, too
    store = LookStore(world.disk)
    live = _view(world, state, first)
    restored = checkpoint.restore(store, 0, SEED, [])
    history = HistoryState(store, 0, SEED) if world.merges else None
    nothing = ShardState(SEED) if history is None else history.recovered()
    for what, other in (("from nothing", nothing), ("from the checkpoint", restored)):
        replay(store, 0, other)
        if other is nothing and history is not None:
            history.add_partitions(other)
        for slot in sorted(other.partitions):
            replay(store, 0, other, slot)
        folded = _view(world, other, first)
        for name, value in live.items():
            if folded[name] != value and None not in (folded[name], value):
                raise ViolationError(f"{name}: live {value}, the logs folded {what} {folded[name]}")
    world.ask(gateway, _retries(world, first))
    if not world.disk.rotted:
        _check_derived(world, state)


def _check_derived(world: World, state: ShardState) -> None:
    """Where no fault took them, every derived file that the shard or its newest checkpoint names is there. What is
    missing is made anew, so nobody else would notice."""
    intervals = [sealed.interval for sealed in state.sealed]  # type: ignore[attr-defined]
    store = LookStore(world.disk)
    for name in checkpoint.checkpoints(store, 0)[-1:]:
        intervals += checkpoint.checkpoint_meta(store, name).intervals
    missing = sorted({name for i in intervals for name in i.names if not store.exists(name)})
    if missing:
        raise ViolationError(f"derived files are missing: {missing}")


def log_at(log_position: int) -> int:
    """The log of a position of the home shard's (shard 0)."""
    return log_of(0, slot_of(log_position))


async def _read_tails(world: World) -> bool:
    """Partitions' logs may end with a fence whose writer has not registered."""
    home = world.home
    assert home.current is not None
    grants = home.current.hot.grants
    for slot in sorted(grants.committer.state.partitions):
        await home._state.run(grants._read_tail, slot)
    return True


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


def _view(world: World, state: ShardState, first: dict[tuple[int, int], int]) -> dict[str, Any]:
    """A state as plain values, by names."""
    c = state.conversations
    hot = {}
    for conv, g in state.hot.items():
        hot[c.name(conv)] = (g.partitions, g.ceiling, g.stable, g.by_rate, list(g.done))
    sealed_postings = [world.files.postings(sealed.interval) for sealed in state.sealed]  # type: ignore[attr-defined]
    postings = [p for found in sealed_postings for p in found or []]
    merged = world.files.snapshot().merged
    spans = {}
    for i in range(c.count):
        name = c.name(i)
        old = [p[1:] for p in postings if p[0] == name]
        new = state.frozen_postings.spans(i, 1, 1 << 60) + state.postings.spans(i, 1, 1 << 60)
        # the others are in the history, and whoever reads them looks there
        spans[name] = sorted(span for span in old + new if segment_of(span[0]) > merged.get(log_at(span[0]), 0))
    view: dict[str, Any] = {
        "heads": {c.name(i): int(c.heads[i]) for i in range(c.count)},
        "stable": {c.name(i): int(c.stable[i]) for i in range(c.count)},
        "hot": hot,
        "members": {c.name(i): state.members.all_roles(i) for i in range(c.count)},
        "cursors": {c.name(i): [state.members.cursor(i, ear.sender) for ear in world.ears] for i in range(c.count)},
        # a checkpoint may name a file that is lost until the next one names what was made in its place
        "postings": None if None in sealed_postings else spans,
        "log": state.log,
        "partitions": state.partitions,
    }
    if first:
        request = tuple(Msg(conv, n) for conv, n in sorted(first))
        _, rows = gather([prepare(from_ipc(ipc_of(request)), SEED)])
        located = locate(state, rows)
        confirmer = Confirmer(LookStore(world.disk), 0, SEED)
        for sealed, _ in located.maybe:
            sealed.store = LookStore(world.disk)  # type: ignore[attr-defined]
            sealed._runs.clear()  # type: ignore[attr-defined]
        planned = plan(state, rows, located, confirmer.confirm(rows, located) if located.maybe else {})
        known = ["status", "seq", "log_position", "row_in_segment", "epoch", "server_ts"]
        columns = {k: getattr(planned, k) for k in known}
        # as above: whoever restarts from that checkpoint makes the ids anew before it answers
        known_all = RowStatus.WAITING not in planned.status
        view |= {f"ids: {k}": None if v is None or not known_all else v.tolist() for k, v in columns.items()}
    return view
