"""A bot that answers each message that begins with "!", once, however often the bot is stopped and started.

    python examples/bot.py tea --seconds 60

It remembers nothing. The id of an answer is made from the id of the message that it answers. After a restart the bot
reads the conversation from its beginning and answers again; the server knows the ids and stores nothing twice.
An answer must depend on the message alone: the same id with another text would be a conflict.

IMRAY_URL and IMRAY_TOKEN name the server and the caller.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import uuid

from imray.client import AsyncClient, ImrayError, Message

BOT = "examples/bot.py"


def answer_id(message: Message) -> str:
    """The id of the answer to a message: the same for the same message, and another one for every other bot."""
    return str(uuid.uuid5(uuid.UUID(message.client_msg_id), BOT))


def answer(text: str) -> str:
    """What the bot says. It never begins with "!", so that the bot does not answer itself."""
    command, _, rest = text[1:].partition(" ")
    if command == "echo":
        return f"> {rest}"
    if command == "count":
        return f"> {len(rest.split())} words"
    return "> I know !echo TEXT and !count TEXT"


async def run(conversation: str, after: int, count: int | None, seconds: float) -> None:
    """Answer what comes; end after `count` answers or `seconds`."""
    async with AsyncClient() as client:
        answered = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for item in client.follow(conversation, after):
                    if not isinstance(item, Message) or not isinstance(item.body, str) or item.body[:1] != "!":
                        continue
                    sent = await client.live.send(conversation, answer(item.body), client_msg_id=answer_id(item))
                    known = "was answered before by" if sent.duplicate else "is answered by"
                    print(f"{item.conv_seq} {item.sender}: {item.body} -- {known} {sent.conv_seq}", flush=True)
                    answered += 1
                    if answered == count:
                        break
    print(f"{answered} messages have their answer.")


def main() -> None:
    """Read the command line and answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversation")
    parser.add_argument("--after", type=int, default=0, help="begin after this number (0)")
    parser.add_argument("--count", type=int, help="end after so many answers")
    parser.add_argument("--seconds", type=float, default=30, help="end after so many seconds (30)")
    options = parser.parse_args()
    try:
        asyncio.run(run(options.conversation, options.after, options.count, options.seconds))
    except ImrayError as error:
        sys.exit(f"The bot stops: {error}")


if __name__ == "__main__":
    main()
