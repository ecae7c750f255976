"""`python -m benchmarks.peers [ROW ...]`: imray and its peers in turns, a kill of each, tables, JSON and a chart."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import machine, report
from benchmarks.__main__ import end_in_order
from benchmarks.harness import ROOT, Options, Sample, T, in_turns, say
from benchmarks.peers import chart, push_run, results, run, table
from benchmarks.peers.catalogue import keys, peer_of, peers, row_of
from benchmarks.peers.daemons import end_leftovers
from benchmarks.peers.push_ways import ways_of
from benchmarks.peers.results import Record

_README = ROOT / "README.md"
_DETAILS = ROOT / "benchmarks" / "README.md"
_CHART = ROOT / "docs" / "peers.svg"
_MARK = "peers"
SENDERS = (1, 4, 16)
_QUICK_SENDERS = 4
_QUICK_S = 2.0
_SIDE_S = 15.0
"""What a side takes beside its measurement: its server's start and end, warming up."""
_KILL_S = 25.0
_PUSH_S = 12.0
"""What a way of telling listeners takes beside its two measurements."""


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="ROW...", help=f"Of {', '.join(keys())}.")] = None,
    senders: Annotated[list[int] | None, typer.Option(min=1, help="How many at once; may be repeated.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; the tables show medians.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of one measurement, after the warm-up.")] = 5.0,
    kill: Annotated[bool, typer.Option(help="Also kill each server in mid-run and count what is left.")] = True,
    speed: Annotated[bool, typer.Option(help="Measure senders.")] = True,
    push: Annotated[bool, typer.Option(help="Measure listeners: 1,000 of them, with --quick 200.")] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="4 senders, one short turn, no kills: within 7 minutes.")
    ] = False,
    folder: Annotated[
        Path, typer.Option("--dir", help="Where data is written; a real disk, or fsync means nothing.")
    ] = ROOT / "benchmarks" / "results",
    as_json: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
    found: Annotated[Path | None, typer.Option("--from", help="Show an earlier --json file instead.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write both READMEs' tables and the chart.")] = False,
) -> None:
    """The same work for imray and for what would be used instead, on this machine, in one run."""
    if found is not None:
        records, where, how = results.from_json(found.read_text())
        counts = [int(n) for n in how["senders"]]
    else:
        counts = sorted(set(senders or ((_QUICK_SENDERS,) if quick else SENDERS)))
        options = Options(_real_disk(folder), repeat, seconds)
        if quick:
            kill = False
            options = replace(options, repeat=1, seconds=_QUICK_S, quick=True)
        if not speed:
            kill = False
        _foretell(names or list(keys()), len(counts) * speed, options, kill, push)
        try:
            records = _chosen(names)
            if speed:
                measure(records, counts, options, kill)
            if push:
                measure_push(records, options)
        finally:
            end_leftovers()
        where = machine.describe(options.folder) | versions(records)
    if as_json is not None:
        as_json.write_text(results.to_json(records, where, {"senders": counts, "repeat": repeat, "seconds": seconds}))
    middle = counts[len(counts) // 2]
    table.show(records, counts, middle, where)
    if markdown:
        report.put_between_marks(_README, table.summary(records, middle), _MARK)
        report.put_between_marks(_DETAILS, table.markdown(records, counts, middle, where), _MARK)
        _CHART.write_text(chart.svg(records, counts))
    if any(r.failures for r in records):
        raise typer.Exit(1)


def _foretell(names: list[str], counts: int, options: Options, kill: bool, push: bool) -> None:
    """Say how long it takes."""
    about_s = options.repeat * counts * len(names) * (_SIDE_S + options.seconds) + _KILL_S * len(names) * kill
    ways = sum(len(ways_of(name)) for name in names) * push
    about_s += options.repeat * ways * (_PUSH_S + 2 * options.seconds)
    say(f"about {max(1, about_s / 60):.0f} min; --quick is the short form")


def _chosen(names: list[str] | None) -> list[Record]:
    """A record for each row, and what it needs."""
    wanted = names or keys()
    if unknown := [n for n in wanted if n not in keys()]:
        raise typer.BadParameter(f"{unknown}: there are {', '.join(keys())}")
    records = [Record(row_of(key), missing=peer_of(key).missing() or "") for key in keys() if key in wanted]
    for record in records:
        if record.missing:
            say(f"{record.row.key} does not run: install {record.missing}")
    return records


def _real_disk(folder: Path) -> Path:
    folder = folder.resolve()
    if machine.filesystem(folder)[0] in machine.NOT_DISKS:
        raise typer.BadParameter(f"{folder} is in memory: choose a folder on a disk with --dir")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def measure(records: list[Record], senders: list[int], options: Options, kill: bool) -> list[Record]:
    """Fill the records of what can run. What fails is noted, and the others go on."""
    ready = [r for r in records if not r.missing]

    def one(record: Record, count: int) -> Sample:
        return guarded(record, f"{count} senders", partial(run.measure, options, record.row.key, count), {})

    sides = {f"{r.row.key} x {n}": partial(one, r, n) for n in senders for r in ready}
    taken = in_turns(sides, options.repeat)
    for record in ready:
        record.samples = {n: taken[f"{record.row.key} x {n}"] for n in senders}
        if kill:
            record.killed = guarded(record, "kill", partial(run.kill, options, record.row.key), None)
            say(f"{record.row.key} killed: {record.killed}")
    return records


def measure_push(records: list[Record], options: Options) -> None:
    """Fill the records with what listeners were told, all ways in turns."""

    def one(record: Record, way: str) -> Sample:
        return guarded(record, f"push {way}", partial(push_run.measure, options, way), {})

    ready = [(r, way.key) for r in records if not r.missing for way in ways_of(r.row.key)]
    taken = in_turns({f"push {way}": partial(one, r, way) for r, way in ready}, options.repeat)
    for record, way in ready:
        record.pushed[way] = taken[f"push {way}"]


def guarded(record: Record, what: str, act: Callable[[], T], otherwise: T) -> T:
    """What `act` returns; where it fails, its error becomes a failure of the record."""
    try:
        return act()
    except Exception as e:  # noqa: BLE001 a peer that fails must not cost the others their figures
        record.failures.append(f"{what}: {type(e).__name__}: {str(e)[:300]}")
        say(f"FAILED {record.row.key}, {record.failures[-1]}")
        end_leftovers()
        return otherwise


def versions(records: list[Record]) -> dict[str, str]:
    """Of the systems that ran."""
    ran = {peer_of(r.row.key) for r in records if r.samples or r.pushed}
    return {"peers": "; ".join(text for peer in peers() if peer in ran and (text := peer.version()))}


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, end_in_order)
    typer.run(main)
