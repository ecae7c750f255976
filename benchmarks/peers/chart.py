"""Records as a bar chart in SVG: a bar for each number of senders, systems in the order of the table.

Plain text of SVG: a library for charts would be a dependency for some thirty rectangles.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.peers.results import RATE, Record

_WIDTH, _LEFT, _RIGHT = 920, 330, 90
_BAR, _GAP, _GROUP_GAP, _TOP = 13, 2, 14, 62
_OURS = ("#f2a46b", "#e07b2f", "#b4530c")
_DURABLE = ("#9fb3c8", "#627d98", "#334e68")
_LOOSE = ("#e4e7eb", "#cbd2d9", "#9aa5b1")
_INK, _PAPER = "#1f2933", "#ffffff"
_NAMES = {"batches": "batches, messages acked a second", "single": "single sends over HTTP, messages acked a second"}


def svg(records: Sequence[Record], senders: Sequence[int]) -> str:
    """The whole chart. Each group of systems has a scale of its own."""
    parts: list[str] = []
    y = _TOP
    for group, title in _NAMES.items():
        found = [r for r in records if r.row.group == group and any(r.figure(n, RATE) for n in senders)]
        if not found:
            continue
        parts.append(_text(16, y, title, 14, bold=True))
        y += 14
        most = max(r.figure(n, RATE) or 0.0 for r in found for n in senders)
        for record in found:
            parts += _bars(record, senders, y, most)
            y += len(senders) * (_BAR + _GAP) + _GROUP_GAP
        y += 22
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" font-family="sans-serif" role="img">'
    paper = f'<rect width="{_WIDTH}" height="{y}" fill="{_PAPER}"/>'
    return "\n".join([head, "<title>imray beside its peers</title>", paper, *_legend(senders), *parts, "</svg>\n"])


def _bars(record: Record, senders: Sequence[int], y: int, most: float) -> list[str]:
    """A system: its name, and a bar with its figure for each number of senders."""
    colours = _OURS if record.row.ours else _DURABLE if record.row.durable else _LOOSE
    height = len(senders) * (_BAR + _GAP)
    parts = [_text(_LEFT - 10, y + height // 2 + 4, record.row.title, 12, anchor="end")]
    for i, count in enumerate(senders):
        rate, top = record.figure(count, RATE), y + i * (_BAR + _GAP)
        if rate is None:
            continue
        width = max(1.0, (_WIDTH - _LEFT - _RIGHT) * rate / most)
        fill = colours[min(i, len(colours) - 1)]
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{fill}"/>')
        parts.append(_text(_LEFT + width + 5, top + _BAR - 2, f"{rate:,.0f}", 11))
    return parts


def _legend(senders: Sequence[int]) -> list[str]:
    kinds = ((_OURS, "imray"), (_DURABLE, "durable before ack"), (_LOOSE, "not durable before ack"))
    parts, x = [], 16.0
    for colours, name in kinds:
        for colour in colours:
            parts.append(f'<rect x="{x:g}" y="14" width="12" height="12" fill="{colour}"/>')
            x += 13
        parts.append(_text(x + 4, 24, name, 12))
        x += 20 + 7 * len(name)
    parts.append(_text(x + 8, 24, f"light to dark: {', '.join(map(str, senders))} senders", 12))
    return parts


def _text(x: float, y: float, text: str, size: int, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{_INK}"{weight}'
    return f"<text {place}>{escape(text)}</text>"
