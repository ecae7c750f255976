"""What a chat shows and what is typed: a terminal with one line to type in, or plain lines where there is none.

Owns keys and the last line of the terminal. Does not own what is said (`imray.cli.chat`).
"""

from __future__ import annotations

import codecs
import re
import shutil
import sys
from collections.abc import Callable
from typing import Protocol

from imray.cli.common import printable

LINE_CHARS_MAX = 16_384
"""What is typed beyond it is not taken."""
_ESCAPE = re.compile("\x1b(\\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)
"""A key that is no character, such as an arrow."""
_ENDS_EARLY = re.compile("\x1b(\\[[0-?]*[ -/]*|O)?$")
_CLEAR_LINE = "\r\x1b[K"
_PROMPT = "> "


class LineEditor:
    """Keys as a terminal sends them, and the lines that they make."""

    def __init__(self) -> None:
        self.text = ""
        """What is typed so far."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> list[str | None]:
        """The lines that are done; None: Ctrl-D on an empty line."""
        keys = self._rest + self._decoder.decode(data)
        early = _ENDS_EARLY.search(keys)
        self._rest = early.group() if early else ""
        done: list[str | None] = []
        for key in _ESCAPE.sub("", keys[: len(keys) - len(self._rest)]):
            if key in "\r\n":
                done.append(self.text)
                self.text = ""
            elif key in "\x7f\b":
                self.text = self.text[:-1]
            elif key == "\x15":  # Ctrl-U
                self.text = ""
            elif key == "\x17":  # Ctrl-W
                self.text = self.text.rstrip().rpartition(" ")[0]
            elif key == "\x04" and not self.text:
                done.append(None)
            elif (key == "\t" or key >= " ") and len(self.text) < LINE_CHARS_MAX:
                self.text += key
        return done


class Screen(Protocol):
    """Where a chat is shown."""

    def show(self, line: str) -> None:
        """A line that stays."""

    def show_typing(self, names: list[str]) -> None:
        """Who types now."""


class PlainScreen:
    """Lines, one after the other."""

    def __init__(self, write: Callable[[str], object] = sys.stdout.write) -> None:
        self._write = write
        self._typing: set[str] = set()

    def show(self, line: str) -> None:
        self._write(line + "\n")
        sys.stdout.flush()

    def show_typing(self, names: list[str]) -> None:
        for name in names:
            if name not in self._typing:
                self.show(f"({printable(name)} is typing)")
        self._typing = set(names)


class TerminalScreen:
    """A terminal: what comes stands above the line in which somebody types."""

    def __init__(
        self,
        write: Callable[[str], object] = sys.stdout.write,
        columns: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        self._write = write
        self._columns = columns
        self._typed = ""
        self._typing: list[str] = []

    def show(self, line: str) -> None:
        self._draw(f"{_CLEAR_LINE}{line}\n")

    def show_typing(self, names: list[str]) -> None:
        self._typing = names
        self._draw(_CLEAR_LINE)

    def show_typed(self, text: str) -> None:
        """What is typed so far."""
        self._typed = text
        self._draw(_CLEAR_LINE)

    def leave(self) -> None:
        """Nothing stays in the last line."""
        self._write(_CLEAR_LINE)
        sys.stdout.flush()

    def _draw(self, above: str) -> None:
        who = f"({', '.join(map(printable, self._typing))} typing) " if self._typing else ""
        prompt = who + _PROMPT
        room = max(8, self._columns() - len(prompt) - 1)
        self._write(f"{above}{prompt}{printable(self._typed)[-room:]}")
        sys.stdout.flush()
