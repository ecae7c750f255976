"""What a server in memory answers from its log: ranges and pages, as docs/live.md has them."""

from __future__ import annotations

from typing import Any, TypeAlias

Log: TypeAlias = list[dict[str, Any] | None]
"""By number, from 1; None is a void."""
VOID = "lost grant"


def range_of(conv_id: str, log: Log, after: int, upto: int) -> dict[str, Any]:
    """Messages and holes above `after` up to `upto`."""
    numbers = range(after + 1, upto + 1)
    messages = [message for n in numbers if (message := log[n - 1]) is not None]
    holes = [{"from": n, "to": n, "reason": VOID} for n in numbers if log[n - 1] is None]
    return {"conv_id": conv_id, "stable_seq": len(log), "messages": messages, "holes": holes}


def page_of(log: Log, item: dict[str, Any], epoch: int) -> dict[str, Any]:
    """The answer to a pull."""
    head = len(log)
    before = item.get("before") or head + 1
    if item["order"] == "desc":
        upto = min(head, before - 1)
        after = max(item["after"], upto - item["limit"])
        further = after + 1 if after > item["after"] else None
    else:
        after = item["after"]
        upto = min(head, before - 1, after + item["limit"])
        further = upto if upto < min(head, before - 1) else None
    page = range_of(item["conv_id"], log, after, upto)
    if item["order"] == "desc":
        page["messages"].reverse()
    return {"t": "page", "ref": item["ref"], "epoch": epoch, "next": further, **page}
