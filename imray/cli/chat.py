"""`imray chat`: a conversation in the terminal, as it happens."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from imray.cli.chat_screen import LineEditor, PlainScreen, Screen, TerminalScreen
from imray.cli.common import Data, Target, Timeout, Token, Url, find_target, printable, speaking_to
from imray.cli.messages import Conv, item_line
from imray.core.errors import ImrayError, InvalidError, UnavailableError

if TYPE_CHECKING:
    from imray.client import AsyncFollower, AsyncLive, Hole, LiveSignal, Message

_TIMEOUT_S = 10.0
_HISTORY_MESSAGES = 20
_LINES_MAX = 100
"""Lines that wait to be sent; a pipe that has more is read later."""
_SHOWN_CHARS_MAX = 80
"""Of a line that was not sent."""
_TYPING = "typing"
_TYPING_EVERY_S = 2.0
_TYPING_HOLDS_S = 4.0
"""Longer than the pause between two signals, so that it does not flicker."""


def chat(
    conv: Conv,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Chat in the terminal: what comes is shown in order, each line that you type is sent.

    It begins with the last 20 messages. `/quit`, Ctrl-D or the end of a pipe ends it, once everything is sent. A line
    whose answer is lost is sent again with its id, so it is stored once.

    Examples:

      imray chat tea --data ./chat

      IMRAY_TOKEN=$(imray token --sub bob --data ./chat) imray chat tea --data ./chat
    """
    target = find_target(url, token, data)
    with speaking_to(target):
        asyncio.run(_run(target, conv, timeout))


async def _run(target: Target, conv: str, timeout_s: float) -> None:
    from imray.client import AsyncLive

    async with AsyncLive(target.url, target.token, timeout_s=timeout_s) as live:
        page = await live.pull(conv, limit=1, order="desc")
        if sys.stdin.isatty() and sys.stdout.isatty():
            await _run_terminal(live, conv, page.stable_seq, timeout_s)
        else:
            session = ChatSession(live, conv, PlainScreen(), timeout_s)
            threading.Thread(target=_read_lines, args=(session.put_from_thread(),), daemon=True).start()
            await session.run(page.stable_seq)


async def _run_terminal(live: AsyncLive, conv: str, head: int, timeout_s: float) -> None:
    import termios
    import tty

    screen = TerminalScreen()
    session = ChatSession(live, conv, screen, timeout_s)
    editor = LineEditor()
    fd = sys.stdin.fileno()

    def on_keys() -> None:
        data = os.read(fd, 4096)
        for line in editor.feed(data) if data else [None]:
            session.put_now(line)
        screen.show_typed(editor.text)
        if editor.text:
            session.tell_typing()

    before = termios.tcgetattr(fd)
    loop = asyncio.get_running_loop()
    try:
        tty.setcbreak(fd)
        loop.add_reader(fd, on_keys)
        await session.run(head)
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        screen.leave()


class ChatSession:
    """One conversation on one screen: lines in, messages out."""

    def __init__(self, live: AsyncLive, conv: str, screen: Screen, timeout_s: float) -> None:
        self._live = live
        self._conv = conv
        self._screen = screen
        self._timeout_s = timeout_s
        self._lines: asyncio.Queue[str | Exception | None] = asyncio.Queue(_LINES_MAX)
        self._typing: dict[str, asyncio.TimerHandle] = {}
        self._told_typing_s = -_TYPING_EVERY_S
        self._last_sent = 0
        self._shown = asyncio.Event()
        """Something more was shown."""

    async def run(self, head: int) -> None:
        """Show and send until there are no more lines. `head`: the last number there is."""
        start = max(0, head - _HISTORY_MESSAGES)
        async with self._live.follow(self._conv, start, on_signal=self._note_signal) as follower:
            showing = asyncio.create_task(self._show(follower))
            sending = asyncio.create_task(self._send(follower))
            try:
                await asyncio.wait([showing, sending], return_when=asyncio.FIRST_COMPLETED)
                if showing.done():
                    await showing  # it ends with an error only
                await sending
            finally:
                for task in (showing, sending):
                    task.cancel()
                await asyncio.gather(showing, sending, return_exceptions=True)

    def put_now(self, line: str | None) -> None:
        """A line of the terminal; where too many wait it is not taken."""
        try:
            self._lines.put_nowait(line)
        except asyncio.QueueFull:
            self._screen.show(f"! not taken, {_LINES_MAX} lines wait to be sent: {_excerpt(line or '')}")

    def put_from_thread(self) -> Callable[[str | Exception | None], None]:
        """For lines of a pipe: waits where too many wait to be sent."""
        loop = asyncio.get_running_loop()

        def put(line: str | Exception | None) -> None:
            asyncio.run_coroutine_threadsafe(self._lines.put(line), loop).result()

        return put

    def tell_typing(self) -> None:
        """Somebody types here; told to the others once in a while."""
        now_s = time.monotonic()
        if now_s - self._told_typing_s >= _TYPING_EVERY_S and self._live.signal(self._conv, _TYPING):
            self._told_typing_s = now_s

    async def _show(self, follower: AsyncFollower[Message | Hole]) -> None:
        from imray.client import Message

        async for item in follower:
            if isinstance(item, Message):
                self._forget_typing(item.sender)
            self._screen.show(item_line(item))
            self._shown.set()

    async def _send(self, follower: AsyncFollower[Message | Hole]) -> None:
        while (line := await self._lines.get()) is not None and line != "/quit":
            if isinstance(line, Exception):
                raise line
            if line:
                await self._send_line(line)
        # what was sent last is shown before it ends
        deadline_s = time.monotonic() + self._timeout_s
        while (follower.last_shown or 0) < self._last_sent:
            self._shown.clear()
            try:
                async with asyncio.timeout(deadline_s - time.monotonic()):
                    await self._shown.wait()
            except TimeoutError as e:
                raise UnavailableError(f"sent, and not shown within {self._timeout_s:g} s") from e

    async def _send_line(self, line: str) -> None:
        """Until it has its answer: the id stays."""
        from imray.client import new_client_msg_id

        msg_id = new_client_msg_id(time.time_ns() // 1_000_000, secrets.token_bytes(10))
        is_told = False
        while True:
            try:
                ack = await self._live.send(self._conv, line, client_msg_id=msg_id)
            except UnavailableError:
                if not is_told:
                    self._screen.show(f"! no answer yet, it is sent again until there is one: {_excerpt(line)}")
                is_told = True
            except ImrayError as e:
                self._screen.show(f"! not sent: {_excerpt(line)} ({printable(str(e))})")
                return
            else:
                self._last_sent = ack.conv_seq
                return

    def _note_signal(self, signal: LiveSignal) -> None:
        if signal.kind != _TYPING:
            return
        known = self._typing.pop(signal.sender, None)
        if known is not None:
            known.cancel()
        loop = asyncio.get_running_loop()
        self._typing[signal.sender] = loop.call_later(_TYPING_HOLDS_S, self._forget_typing, signal.sender)
        self._screen.show_typing(sorted(self._typing))

    def _forget_typing(self, sender: str) -> None:
        known = self._typing.pop(sender, None)
        if known is not None:
            known.cancel()
            self._screen.show_typing(sorted(self._typing))


def _excerpt(line: str) -> str:
    """A line for who has typed it to know it by."""
    shown = printable(line[: _SHOWN_CHARS_MAX + 1])
    return shown if len(shown) <= _SHOWN_CHARS_MAX else shown[: _SHOWN_CHARS_MAX - 1] + "…"


def _read_lines(put: Callable[[str | Exception | None], None]) -> None:
    """The lines of stdin, for who reads them in another thread."""
    try:
        # a file object of its own: at exit Python closes sys.stdin and aborts where a thread still reads it
        with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as lines:
            for line in lines:
                put(line.removesuffix(b"\n").removesuffix(b"\r").decode())
        put(None)
    except UnicodeDecodeError:
        put(InvalidError("a line of stdin is not UTF-8: the lines before it were sent"))
    except OSError as e:
        put(InvalidError(f"stdin cannot be read: {e}"))
    except RuntimeError:
        return  # the chat is over, and nobody takes lines any more
