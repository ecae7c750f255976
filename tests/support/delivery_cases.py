"""Runs `spec/delivery_cases.json`: its events, items and actions as values of the session, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from imray.core import delivery_items as items
from imray.core.delivery import Delivery
from imray.core.delivery_conversation import DeliveryConfig
from imray.core.reorder import Void
from tests.support.source_files import ROOT

TABLE = json.loads((ROOT / "spec" / "delivery_cases.json").read_text("utf-8"))
_SHARE = 0.5


def item_of(fields: dict[str, Any]) -> items.HeardItem[int]:
    """An item as the table writes it."""
    given = dict(fields)
    match given.pop("t"):
        case "welcome":
            return items.WelcomeHeard(given["ping_interval_s"] * 1000)
        case "subscribed":
            return items.SubscribedHeard(**given)
        case "messages":
            given["messages"] = [(n, n) for n in given["messages"]]
            given["holes"] = [Void(*hole) for hole in given["holes"]]
            return items.MessagesHeard(**given)
        case "head":
            return items.HeadHeard(**given)
        case "behind":
            return items.BehindHeard(**given)
        case "ended":
            return items.EndedHeard(**given)
        case "error":
            return items.ErrorHeard(given.get("ref"), given["status"], "because", given.get("retry_after_s", 0) * 1000)
        case "drain":
            return items.DrainHeard(given["reconnect_in_s"] * 1000)
        case "expiring":
            return items.ExpiringHeard()
    raise AssertionError(f"unknown item {fields}")


def feed(session: Delivery[int], event: dict[str, Any], at_ms: int) -> list[items.DeliveryAction[int]]:
    """One event of a case."""
    kind, value = next(iter(event.items()))
    match kind:
        case "start":
            return session.start(at_ms)
        case "stop":
            return session.stop()
        case "follow":
            return session.follow(*value, at_ms)
        case "unfollow":
            return session.unfollow(value)
        case "hold":
            return session.hold(value)
        case "resume":
            return session.resume(value, at_ms)
        case "item":
            return session.item(event["of"], item_of(value), at_ms)
        case "heard":
            session.heard(value, at_ms)
            return []
        case "closed":
            conn, code = value
            return session.closed(conn, code, "", at_ms)
        case "refused":
            conn, status, retry_after_s = value
            return session.refused(conn, status, "because", retry_after_s * 1000, at_ms)
        case "tick":
            return session.tick(at_ms)
    raise AssertionError(f"unknown event {kind}")


def written(action: items.DeliveryAction[int]) -> dict[str, Any]:
    """An action as the table writes it."""
    match action:
        case items.Connect(conn):
            return {"connect": conn}
        case items.Close(conn):
            return {"close": conn}
        case items.Subscribe(conn, ref, conv_id, after, passive):
            return {"subscribe": [conn, ref, conv_id, after, passive]}
        case items.Unsubscribe(conn, ref, conv_id):
            return {"unsubscribe": [conn, ref, conv_id]}
        case items.Ping(conn, ref):
            return {"ping": [conn, ref]}
        case items.Renew(conn):
            return {"renew": conn}
        case items.Show(conv_id, parts):
            return {"show": [conv_id, [_written_part(part) for part in parts]]}
        case items.ShowHead(conv_id, seq, unread):
            return {"show_head": [conv_id, seq, unread]}
        case items.Over(conv_id, status):
            return {"over": [conv_id, status]}
        case items.Failed(status):
            return {"failed": status}


def state_of(session: Delivery[int]) -> dict[str, Any]:
    """What a step's `state` is compared with."""
    return {
        "link": session.link.phase.name,
        "last_shown": {followed.conv_id: followed.last_shown for followed in session._book},
        "timer": session.timer_at_ms,
    }


def run_case(case: dict[str, Any]) -> Iterator[tuple[Delivery[int], list[dict[str, Any]]]]:
    """The session and its actions, after each step."""
    share = [_SHARE]
    session: Delivery[int] = Delivery(DeliveryConfig(**(TABLE["defaults"] | case["config"])), lambda: share[0])
    for step in case["steps"]:
        share[0] = step.get("random", _SHARE)
        yield session, [written(action) for action in feed(session, step["event"], step["at_ms"])]


def complaint_about(case: dict[str, Any]) -> str | None:
    """Where a session does not do what the table says; None: it does."""
    for i, (session, actions) in enumerate(run_case(case)):
        step = case["steps"][i]
        if actions != step["actions"]:
            return f"{case['name']}, step {i}, {step['event']}: {actions} instead of {step['actions']}"
        state = state_of(session)
        expected = step.get("state", {})
        if {key: state[key] for key in expected} != expected:
            return f"{case['name']}, step {i}, {step['event']}: {state} instead of {expected}"
    return None


def _written_part(part: tuple[int, int] | Void) -> int | list[Any]:
    if isinstance(part, Void):
        return [part.from_seq, part.to_seq, part.reason]
    seq, message = part
    assert seq == message
    return seq
