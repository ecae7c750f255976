"""Send each line of stdin over an outbox: one that is killed before its answer is sent again at the next start, once.

    printf 'one\\ntwo\\n' | python examples/outbox.py tea --file tea.outbox
    python examples/outbox.py tea --file tea.outbox < /dev/null    # only what an earlier run has left

IMRAY_URL and IMRAY_TOKEN name the server and the caller.
"""

from __future__ import annotations

import argparse
import sys

from imray.client import Client, ImrayError, Outbox, OutboxAnswer


def line(answer: OutboxAnswer) -> str:
    """What became of one message."""
    if answer.ack is None:
        return f"- {answer.message.body}: {answer.error}"
    return f"{answer.ack.conv_seq} {answer.message.body}"


def main() -> None:
    """Read the command line, send what was left, then the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversation")
    parser.add_argument("--file", default="imray.outbox", help="where messages wait for their answers (imray.outbox)")
    parser.add_argument("--seconds", type=float, default=30, help="how long to try each message (30)")
    options = parser.parse_args()
    try:
        with Client(timeout_s=options.seconds) as client, Outbox(options.file, client) as outbox:
            for answer in outbox.resend():
                print(f"left by an earlier run: {line(answer)}", flush=True)
            for text in sys.stdin:
                sent = outbox.send(options.conversation, text.rstrip("\n"))
                print(f"{sent.conv_seq} {text.rstrip()}", flush=True)
    except ImrayError as error:
        sys.exit(f"Stopped: {error}\nWhat has no answer stays in {options.file}, and is sent by the next run.")


if __name__ == "__main__":
    main()
