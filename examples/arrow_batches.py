"""Send many messages as Arrow batches: columns, not one object for each message.

    python examples/arrow_batches.py tea
    python examples/arrow_batches.py tea --count 100000 --batch 10000

IMRAY_URL and IMRAY_TOKEN name the server and the caller.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from imray.client import Client, ImrayError


def batch(conversation: str, first: int, count: int) -> pa.Table:
    """`count` messages. An id is 16 bytes; keep the table until it has an answer, and send the same one again."""
    return pa.table(
        {
            "conv_id": pa.array([conversation] * count).dictionary_encode(),
            "client_msg_id": pa.array([uuid.uuid4().bytes for _ in range(count)], pa.binary(16)),
            "body": pa.array([f"line {n}" for n in range(first, first + count)]),
        }
    )


def main() -> None:
    """Read the command line, send the batches one after the other, print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversation")
    parser.add_argument("--count", type=int, default=10_000, help="how many messages (10000)")
    parser.add_argument("--batch", type=int, default=2_500, help="how many in one request (2500)")
    parser.add_argument("--seconds", type=float, default=30, help="how long to try each batch (30)")
    options = parser.parse_args()

    statuses: Counter[int] = Counter()
    began = time.monotonic()
    try:
        with Client(timeout_s=options.seconds) as client:
            for sent in range(0, options.count, options.batch):
                rows = batch(options.conversation, sent + 1, min(options.batch, options.count - sent))
                outcomes = client.send_arrow(rows)
                statuses.update(outcomes["status"].to_pylist())
                numbers = pc.min_max(outcomes["conv_seq"]).as_py()
                print(f"{rows.num_rows:,} messages: numbers {numbers['min']} to {numbers['max']}", flush=True)
    except ImrayError as error:
        sys.exit(f"Stopped after {statuses.total():,} messages: {error}")
    took_s = time.monotonic() - began
    stored = statuses[201] + statuses[200]
    print(f"{stored:,} of {options.count:,} messages are stored, after {took_s:.1f} s.")
    if stored < options.count:
        sys.exit(f"The rest was refused: {dict(statuses)}")


if __name__ == "__main__":
    main()
