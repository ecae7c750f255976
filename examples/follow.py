"""Follow a conversation by push: every message in order, each once, and a reason for each number that is no message.

    python examples/follow.py tea --seconds 60
    python examples/follow.py tea --after 120 --count 10    # go on after message 120

IMRAY_URL and IMRAY_TOKEN name the server and the caller.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys

from imray.client import AsyncClient, Hole, ImrayError, Message


def line(item: Message | Hole) -> str:
    """One message or hole, to be read by a person."""
    if isinstance(item, Hole):
        return f"{item.from_seq} to {item.to_seq}: no messages ({item.reason})"
    text = item.body if isinstance(item.body, str) else f"{len(item.body)} bytes"
    return f"{item.conv_seq} {item.sender}: {text}"


async def follow(conversation: str, after: int, count: int | None, seconds: float) -> int:
    """Print what comes; end after `count` lines or `seconds`. Returns the last number shown."""
    async with AsyncClient() as client:
        follower = client.follow(conversation, after)
        printed = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for item in follower:
                    print(line(item), flush=True)
                    printed += 1
                    if printed == count:
                        break
        return follower.last_shown or 0


def main() -> None:
    """Read the command line and follow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversation")
    parser.add_argument("--after", type=int, default=0, help="the last number that was shown before (0: none)")
    parser.add_argument("--count", type=int, help="end after so many lines")
    parser.add_argument("--seconds", type=float, default=30, help="end after so many seconds (30)")
    options = parser.parse_args()
    try:
        last = asyncio.run(follow(options.conversation, options.after, options.count, options.seconds))
    except ImrayError as error:
        sys.exit(f"Cannot follow {options.conversation}: {error}")
    print(f"Shown up to {last}. To go on from here: --after {last}")


if __name__ == "__main__":
    main()
