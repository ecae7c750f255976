"""What becomes of the log of a chat that lives for years: load with merging, pulls, audits, old ids, restarts.

`python -m benchmarks history --rows 100000000`; `--segments 200000` asks another question (`history_segments`). Owns
the order of the questions. Each is in a file of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from benchmarks import history_segments
from benchmarks.engine import WARMUP_S, cluster
from benchmarks.harness import Figure, Options, say
from benchmarks.history_audits import measure_audits, measure_planted
from benchmarks.history_folder import KINDS, LAG_MAX, REST, FilesOfKind, Lag, survey, total
from benchmarks.history_ids import Marks, measure_ids, write_marks
from benchmarks.history_load import HistoryLoader
from benchmarks.history_pulls import measure_pulls
from benchmarks.history_restart import (
    KILLS,
    STARTS,
    flat_figures,
    flat_head,
    flat_line,
    measure_kills,
    measure_starts,
    shard_memory,
)
from benchmarks.history_system import actors_of, running, say_shards
from benchmarks.workload import BODY_BYTES, chat_file
from imray.settings import Settings

QUESTION = "the log becomes history: load, bytes, pulls, audits, restarts and old ids with so many messages"
ROWS = 1_000_000
ROWS_QUICK = 200_000
MESSAGES_A_CONVERSATION = 100
BYTES_MAX = 160.0
LOAD_RATIO_MIN = 0.4
QUIET_S_MAX = 60.0
"""A quiet system has LAG_MAX segments a log within so long."""
_BATCH_ROWS = 5000
_BATCH_ROWS_QUICK = 500
_PLAIN_ROWS_MIN = 200_000
_PLAIN_SHARE = 10
"""The load without merging has a tenth of the messages, and at least _PLAIN_ROWS_MIN or all."""
_WARMUP_ROWS = 100
_WARMUP_PAUSE_S = 0.1
_PULLS_S_MIN = 20.0
_PULLS_S_QUICK = 5.0
_QUICK_WAIT_S = 3.0
_LONG_S = 60.0
"""A shorter load says nothing of merging: it waits for a checkpoint's time, which is a part of a minute."""
_MERGED_S_MAX = 1800.0
_DELETED_S_MAX = 180.0
_LOAD_S_MAX = 6 * 3600.0


@dataclass(frozen=True)
class Form:
    """How large a run is."""

    rows: int
    batch_rows: int
    pulls_s: float
    window: int
    producers: int

    @property
    def conversations(self) -> int:
        """Of the load."""
        return max(100, self.rows // MESSAGES_A_CONVERSATION)

    @property
    def plain_rows(self) -> int:
        """Messages of the load without merging."""
        return max(self.rows // _PLAIN_SHARE, min(self.rows, _PLAIN_ROWS_MIN))


@dataclass(frozen=True)
class LoadResult:
    """What a load showed."""

    rows: int
    messages: int
    """All that are in the folder: those of the load, of the warm-up, and the marks."""
    seconds: float
    """From the first message to the last ack."""
    acked_per_s: float
    merged_per_s: float
    """Counted until the lag was under LAG_MAX segments a log; without merging the same as `acked_per_s`."""
    at_end: dict[str, FilesOfKind]
    """What was on disk when the last message was acked."""
    settled: dict[str, FilesOfKind]
    """When each log had at most LAG_MAX segments; without merging as `at_end`."""
    settled_s: float
    segments_left: int
    """Of the log that has the most; more than LAG_MAX: they were waited for in vain."""
    memory: list[float]
    """MiB of each shard."""
    marks: Marks | None = None


def form_of(options: Options) -> Form:
    """What the command line asks for."""
    rows = options.rows or (ROWS_QUICK if options.quick else ROWS)
    batch_rows = _BATCH_ROWS_QUICK if options.quick else _BATCH_ROWS
    pulls_s = _PULLS_S_QUICK if options.quick else max(_PULLS_S_MIN, options.seconds)
    return Form(rows, min(batch_rows, max(10, rows // 100)), pulls_s, options.window, options.producers)


def settings_of(options: Options) -> Settings:
    """The environment's; the quick form waits less for what it is about."""
    settings = Settings.from_env()
    if not options.quick:
        return settings
    say(f"quick: checkpoints after {_QUICK_WAIT_S:.0f} s, deleted after {_QUICK_WAIT_S:.0f} s")
    return replace(settings, checkpoint_wait_s=_QUICK_WAIT_S, read_s_max=_QUICK_WAIT_S)


def run(options: Options) -> list[Figure]:
    """All questions about one folder, from its load to its last start."""
    if options.segments is not None:
        return history_segments.run(options)
    form = form_of(options)
    say(f"{form.rows:,} messages in {form.conversations:,} conversations; bodies: {_text()}")
    settings = settings_of(options)
    with options.fresh_folder() as data:
        with cluster():
            with options.fresh_folder() as plain_data:
                plain = _load(plain_data, replace(settings, merge=False), form, form.plain_rows)
            loaded = _load(data, settings, form, form.rows)
            assert loaded.marks is not None
            with running(data, settings) as system:
                fresh = shard_memory(system)
                say_shards(system)
                pulls = measure_pulls(system, form.conversations, loaded.acked_per_s, form.batch_rows, form.pulls_s)
                ids = measure_ids(system, loaded.marks, loaded.messages, options)
                kills = measure_kills(system, 1 if options.quick else KILLS)
            audits = measure_audits(data, loaded.messages)
            planted = measure_planted(options)
        starts = measure_starts(data, 1 if options.quick else STARTS)
    flat = flat_figures(loaded.messages, kills, starts, loaded.memory, fresh)
    print(f"{flat_head(flat)}\n{flat_line(flat, loaded.messages)}")
    return [*_load_figures(plain, loaded), *pulls, *audits, *planted, *flat, *ids]


def _load(data: Path, settings: Settings, form: Form, rows: int) -> LoadResult:
    """Warm up, write the marks (with merging: they are for later), send the load, wait until it is merged."""
    merging = settings.merge
    with running(data, settings) as system:
        how = (system.namespace, system.manifest, system.settings, form.conversations)
        with actors_of(HistoryLoader, form.producers, *how) as loaders:
            warmed = int(WARMUP_S / _WARMUP_PAUSE_S)
            first = time.monotonic() + 0.5
            ray.get([one.pace.remote(_WARMUP_ROWS, first, _WARMUP_PAUSE_S, warmed) for one in loaders])
            marks = write_marks(system, rows, form.conversations, seed=rows) if merging else None
            say(f"load of {rows:,} messages, merging {'on' if merging else 'off'}")
            share = -(-rows // len(loaders))
            runs = [one.load.remote(share, form.batch_rows, form.window) for one in loaders]
            spans: list[tuple[float, float]] = ray.get(runs, timeout=_LOAD_S_MAX)
        began = min(begin for begin, _ in spans)
        acked = max(end for _, end in spans)
        rows = share * len(loaders)
        at_end = survey(data)
        merged = acked
        settled = acked
        left = 0
        if merging:
            lag = Lag(data)
            merged = max(acked, lag.await_merged(_MERGED_S_MAX + acked - began))
            left = lag.await_deleted(_DELETED_S_MAX + acked - began)
            settled = time.monotonic()
            say(f"merged {merged - acked:.1f} s after the last ack; a log has {left} after {settled - acked:.1f} s")
        say_shards(system)
        messages = rows + warmed * _WARMUP_ROWS * len(loaders) + (len(marks.sends) if marks else 0)
        return LoadResult(
            rows=rows,
            messages=messages,
            seconds=acked - began,
            acked_per_s=rows / (acked - began),
            merged_per_s=rows / (merged - began),
            at_end=at_end,
            settled=survey(data) if merging else at_end,
            settled_s=settled - acked,
            segments_left=left,
            memory=shard_memory(system),
            marks=marks,
        )


def _load_figures(plain: LoadResult, loaded: LoadResult) -> list[Figure]:
    on = f"{loaded.rows:,} messages, merging on"
    off = f"{plain.rows:,} messages, IMRAY_MERGE=0"
    until = f"until under {LAG_MAX} unmerged segments a log"
    ratio_note = f"{on}, {until} / {off}, until the last ack"
    target: float | None = LOAD_RATIO_MIN
    if loaded.seconds < _LONG_S:
        target = None
        ratio_note += f"; NOT telling: a load of {loaded.seconds:.0f} s mostly waits for a checkpoint's time"
    return [
        Figure("load: merging off", "messages/s", [plain.acked_per_s], note=off),
        Figure("load: merging on", "messages/s", [loaded.merged_per_s], note=f"{on}, {until}"),
        Figure("load: merging on, acks alone", "messages/s", [loaded.acked_per_s], note=f"{on}, until the last ack"),
        Figure("load: on / off", "ratio", [loaded.merged_per_s / plain.acked_per_s], target, note=ratio_note),
        Figure("load: on / off, acks alone", "ratio", [loaded.acked_per_s / plain.acked_per_s]),
        Figure(
            "load: last ack to a log that is deleted", "s", [loaded.settled_s], note=f"{on}; {LAG_MAX} segments left"
        ),
        *_disk_figures("merging off", plain.at_end, plain.messages, None),
        *_disk_figures("merging on, at the last ack", loaded.at_end, loaded.messages, None),
        *_disk_figures("merging on, merged and deleted", loaded.settled, loaded.messages, BYTES_MAX),
    ]


def _disk_figures(when: str, found: dict[str, FilesOfKind], messages: int, target: float | None) -> list[Figure]:
    """Bytes a message with every file counted, and each kind's part of that."""
    everything = total(found)
    text = f"bodies of {BODY_BYTES} bytes, {_text()}; every file"
    each = "bytes/message"
    size = [everything.bytes / messages]
    figures = [
        Figure(f"disk, {when}", each, size, target, more_is_better=False, note=text),
        Figure(f"disk, {when}: in blocks", each, [everything.blocks / messages], note="what the files occupy"),
        Figure(f"disk, {when}: files", "files", [float(everything.files)]),
    ]
    for kind in (*KINDS, REST):
        part = found[kind]
        note = f"{part.files:,} files"
        figures.append(Figure(f"disk, {when}: {kind}", each, [part.bytes / messages], note=note))
    return figures


def _text() -> str:
    return "slices of real chat" if chat_file() else "slices of generated words"
