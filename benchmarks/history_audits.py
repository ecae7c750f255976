"""`imray audit` over a folder: seconds and memory, and whether it finds what was planted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import ROOT, Figure, Options, Sample, say
from benchmarks.history_system import rss_anon
from benchmarks.processes import descendants
from imray.history.merging import merge_segments
from imray.history.table import Table
from imray.log.marks import LogEnd, MergeMark, put_mark
from imray.log.reader import read_segment
from imray.log.segment import segment_name
from imray.log.store import LocalStore
from imray.settings import Settings
from tests.support.many_segments import make_segments

FIRST_S_MAX = 120.0
AGAIN_S_MAX = 45.0
MEMORY_BYTES_MAX = 4 * 2**30
PLANTED = {
    "unexplained_gaps": "a gap",
    "duplicate_numbers": "a doubled number",
    "duplicate_ids": "a doubled id",
}
"""By the audit that must find it."""
_LOOK_S = 0.05
_PLANTED_SEGMENTS = 201
_PLANTED_ROOMS = 8


def audited(data: Path) -> tuple[Sample, dict[str, int]]:
    """One run of the command, in processes of its own: seconds, memory, and how often each violation was found."""
    began = time.monotonic()
    command = [sys.executable, "-m", "imray.cli", "audit", "--data", str(data), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    most = 0
    assert process.stdout is not None
    with process.stdout as output:
        while process.poll() is None:
            most = max(most, sum(map(rss_anon, (process.pid, *descendants(process.pid)))))
            time.sleep(_LOOK_S)  # between two looks
        text = output.read()
    elapsed = time.monotonic() - began
    if process.returncode not in (0, 1) or not text:
        raise RuntimeError(f"the audit ended with {process.returncode}: its errors stand above")
    return {"seconds": elapsed, "memory": float(most)}, violations(json.loads(text))


def violations(report: Mapping[str, Any]) -> dict[str, int]:
    """What a report says is wrong: how often, by the audit's name."""
    return {found["name"]: found["total"] for found in report["findings"] if found["violated"]}


def measure_audits(data: Path, messages: int) -> list[Figure]:
    """First, and again, over a folder whose system is down. RuntimeError where the log is not clean."""
    say("audits: first time, and again")
    runs = []
    for _ in range(2):
        sample, found = audited(data)
        if found:
            raise RuntimeError(f"the audit finds in what was loaded: {found}")
        runs.append(sample)
    note = f"all audits of {messages:,} messages, with the start of the command; the system is down"
    memory = "anonymous memory of all its processes, the most"
    limits = ((runs[0], "first time", FIRST_S_MAX), (runs[1], "again", AGAIN_S_MAX))
    figures = []
    for sample, form, most in limits:
        figures.append(Figure(f"audits: {form}", "s", [sample["seconds"]], most, more_is_better=False, note=note))
        mib = sample["memory"] / 2**20
        limit = MEMORY_BYTES_MAX / 2**20
        figures.append(Figure(f"audits: {form}: memory", "MiB", [mib], limit, more_is_better=False, note=memory))
    return figures


def measure_planted(options: Options) -> list[Figure]:
    """Whether what was planted is found: in the log, and in the history once it is merged."""
    figures = []
    for form in ("in the log", "in the history"):
        with options.fresh_folder() as data:
            plant(data)
            if form == "in the history":
                merge_all(data)
            _, found = audited(data)
        for name, what in PLANTED.items():
            note = f"planted in a folder of {_PLANTED_SEGMENTS} segments"
            figures.append(Figure(f"{what} {form} is found", "times", [float(found.get(name, 0))], 1.0, note=note))
    return figures


def plant(data: Path) -> None:
    """A log of one shard, sound but for one gap, one doubled number and one doubled id."""
    last = _PLANTED_SEGMENTS - _PLANTED_ROOMS + 1
    ids: dict[int, pa.Array] = {}

    def change(number: int, table: pa.Table) -> pa.Table:
        """The last message of three conversations."""
        ids[number] = table["client_msg_id"]
        if number == last:
            return _with(table, "conv_seq", _numbers(table, 1))
        if number == last + 1:
            return _with(table, "conv_seq", _numbers(table, -1))
        if number == last + 2:
            return _with(table, "client_msg_id", ids[number - _PLANTED_ROOMS])
        return table

    make_segments(data, _PLANTED_SEGMENTS, conversations=_PLANTED_ROOMS, change=change)


def _numbers(table: pa.Table, by: int) -> pa.Array:
    return pa.array(np.asarray(table["conv_seq"]) + by)


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), column)


def merge_all(data: Path) -> None:
    """Merge the whole log of one shard, and take away what is merged but its fence: no shard would serve it."""
    store = LocalStore(data)
    table = Table(store)
    last = read_segment(store, 0, _PLANTED_SEGMENTS)
    end = LogEnd(0, last.meta.segment, last.meta.epoch, last.digest.hex(), [(last.meta.epoch, 1)])
    base = table.snapshot()  # before the first file of the run
    files, ends = merge_segments(store, 0, {0: None}, {0: end}, Settings())
    moves = {0: (0, ends[0].segment)}
    made = table.commit(base, files, (), moves, "merge", time.time_ns() // 10**6)
    if ends[0].segment != last.meta.segment:
        raise RuntimeError(f"only segments up to {ends[0].segment} were merged")
    put_mark(store, MergeMark(ends[0], made.version))
    for number in range(2, last.meta.segment + 1):
        store.delete(segment_name(0, number))
