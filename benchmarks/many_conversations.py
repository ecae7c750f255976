"""Does a shard with 10,000 conversations keep the speed of one with a single conversation?"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.engine import BATCH_ROWS, cluster, producers, saturate
from benchmarks.harness import Figure, Options, column, in_turns, ratios

QUESTION = "10,000 conversations in one shard beside one, all else as in hot_group"
CONVERSATIONS = 10_000
TARGET_RATIO = 0.7


def run(options: Options) -> list[Figure]:
    """Both, in turns."""
    count = options.producers
    with cluster(), producers(count, BATCH_ROWS, 1) as one, producers(count, BATCH_ROWS, CONVERSATIONS) as many:
        turns = in_turns(
            {
                "one": lambda: asdict(saturate(options, one)),
                "many": lambda: asdict(saturate(options, many)),
            },
            options.repeat,
        )
    one_rate, many_rate = column(turns["one"], "per_second"), column(turns["many"], "per_second")
    return [
        Figure("10,000 conversations", "messages/s", many_rate),
        Figure("one conversation", "messages/s", one_rate),
        Figure("10,000 / one", "ratio", ratios(many_rate, one_rate), TARGET_RATIO),
        Figure("mean commit of 10,000", "messages", column(turns["many"], "commit_rows")),
    ]
