"""Send one message. Its id is made before the first try and kept over every retry, so it is stored once.

    python examples/send.py tea "hello"
    python examples/send.py tea "hello" --id 0190b0f2-6f2e-7c3a-9d27-0242ac120002    # the first number again

IMRAY_URL and IMRAY_TOKEN name the server and the caller.
"""

from __future__ import annotations

import argparse
import sys
import uuid

from imray.client import Client, ImrayError, UnknownOutcomeError


def main() -> None:
    """Read the command line, send, print the number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversation")
    parser.add_argument("text")
    parser.add_argument("--id", help="the message's id, to send a message again; a new one by default")
    parser.add_argument("--seconds", type=float, default=30, help="how long to try (30)")
    options = parser.parse_args()

    # A program that must not lose its message writes the id and the text to disk here, before it sends.
    message_id = options.id or str(uuid.uuid4())
    try:
        with Client(timeout_s=options.seconds) as client:
            sent = client.send(options.conversation, options.text, client_msg_id=message_id)
    except UnknownOutcomeError as error:
        sys.exit(f"It may be stored or not: {error}\nSend it again with --id {message_id}; it is stored once.")
    except ImrayError as error:
        sys.exit(f"Not sent: {error}")
    print(f"Message {sent.conv_seq} of {sent.conv_id}, id {sent.client_msg_id}.")
    if sent.duplicate:
        print("It was stored before. This is its first number, and nothing was written.")


if __name__ == "__main__":
    main()
