"""Which segments a page of history needs: pure arithmetic over (place, first, last number).

Owns no files and no reading (`analytics.history`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

FILES_MAX = 512
"""Segments read at once: a conversation with one message a commit is read in steps, and `next` leads on."""

Span = tuple[int, int, int]
"""Place, first and last number of one conversation in the segment there. A void range has a span of its own."""


@dataclass(frozen=True)
class Window:
    """Numbers to read now, and the segments that hold them."""

    range: tuple[int, int]
    log_positions: list[int]

    @property
    def numbers(self) -> int:
        """How many numbers it spans."""
        return self.range[1] - self.range[0] + 1

    @property
    def first(self) -> int:
        """Its first place; 1 where it has none."""
        return min(self.log_positions, default=1)

    def cut(self, to: tuple[int, int]) -> Window:
        """The same segments, fewer numbers."""
        return replace(self, range=to)


def mirrored(low: int, high: int, descending: bool) -> tuple[int, int]:
    """A range of numbers as the reader walks it: for descending with the other sign, so that both walk upwards."""
    return (-high, -low) if descending else (low, high)


def covered(spans: Sequence[Span], low: int, high: int) -> bool:
    """Whether each of the numbers low..high is in one of the spans."""
    at = low
    for _, first, last in sorted(spans, key=lambda span: span[1]):
        if at > high or first > at:
            break
        at = max(at, last + 1)
    return at > high


def nearest(spans: Sequence[Span], descending: bool) -> list[Span]:
    """From the asked end on, each once, and one more than may be read at once."""
    key = (lambda span: (-span[2], -span[0])) if descending else (lambda span: (span[1], span[0]))
    return sorted(set(spans), key=key)[: FILES_MAX + 1]


def choose(
    spans: Sequence[Span], asked: tuple[int, int], numbers: int, horizon: int | None, descending: bool
) -> Window:
    """The next `numbers` numbers of the asked range from its asked end (no further than `horizon`), with the segments
    that hold any of them; fewer numbers where that would be more than FILES_MAX segments."""
    begin, end = mirrored(*asked, descending)
    end = min(end, begin + numbers - 1)
    if horizon is not None:
        end = max(begin, min(end, mirrored(horizon, horizon, descending)[0]))
    ordered = sorted((*mirrored(first, last, descending), log_position) for log_position, first, last in spans)
    log_positions: set[int] = set()
    for first, last, log_position in ordered:
        if first > end:
            break
        if last < begin:
            continue
        if log_position not in log_positions and len(log_positions) == FILES_MAX and first > begin:
            end = first - 1
            break
        log_positions.add(log_position)
    low, high = mirrored(begin, end, descending)
    return Window((low, high), sorted(log_positions))
