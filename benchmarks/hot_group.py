"""How many messages a second does one conversation take, and how near is that to what one core could write?"""

from __future__ import annotations

from benchmarks.engine import BATCH_ROWS, cluster, producers, saturate
from benchmarks.harness import Figure, Options, Sample, child, column, in_turns, ratios

QUESTION = "one conversation, 100-byte bodies, batches of 20,000 and 10,000, fsync before ack, duplicate check on"
TARGET_PER_SECOND = 1_500_000
TARGET_RATIO = 0.5
_SMALLER_ROWS = 10_000


def run(options: Options) -> list[Figure]:
    """The engine and the limit, in turns."""
    with (
        cluster(),
        producers(options.producers, BATCH_ROWS, 1) as senders,
        producers(options.producers, _SMALLER_ROWS, 1) as smaller,
    ):
        commit_rows = 4 * BATCH_ROWS

        def engine_side() -> Sample:
            nonlocal commit_rows
            load = saturate(options, senders)
            commit_rows = round(load.commit_rows)
            return {"per_second": load.per_second, "commit_rows": load.commit_rows}

        def limit_side() -> Sample:
            with options.fresh_folder() as folder:
                return child("benchmarks.limit", folder, commit_rows, 1, options.seconds, seconds=options.seconds)

        def smaller_side() -> Sample:
            load = saturate(options, smaller)
            return {"per_second": load.per_second, "commit_rows": load.commit_rows}

        turns = in_turns({"engine": engine_side, "smaller": smaller_side, "limit": limit_side}, options.repeat)
    rate, limit = column(turns["engine"], "per_second"), column(turns["limit"], "per_second")
    how = f"{options.producers} producers, {options.window} batches in flight each"
    return [
        Figure(f"engine, batches of {BATCH_ROWS:,}", "messages/s", rate, TARGET_PER_SECOND, note=how),
        Figure(f"engine, batches of {_SMALLER_ROWS:,}", "messages/s", column(turns["smaller"], "per_second")),
        Figure("limit: encode, checksum, fsync on one core", "messages/s", limit),
        Figure("engine / limit", "ratio", ratios(rate, limit), TARGET_RATIO),
        Figure("mean commit", "messages", column(turns["engine"], "commit_rows")),
        Figure("limit: encode and checksum", "ns/message", column(turns["limit"], "encode_ns")),
        Figure("limit: put with fsync", "ns/message", column(turns["limit"], "put_ns")),
        Figure("file", "bytes/message", column(turns["limit"], "file_bytes")),
    ]
