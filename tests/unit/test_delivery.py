"""The delivery session against the table of cases that every SDK runs."""

from __future__ import annotations

from typing import Any

import pytest

from imray.core.delivery import Delivery
from imray.core.delivery_conversation import DeliveryConfig, FollowPhase, jittered_pause_ms
from imray.core.delivery_items import MessagesHeard, SubscribedHeard, WelcomeHeard
from imray.core.delivery_link import LinkPhase
from imray.core.errors import InvalidError
from tests.support.delivery_cases import TABLE, complaint_about, run_case


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: case["name"])
def test_case(case: dict[str, Any]) -> None:
    assert complaint_about(case) is None


def test_the_table_is_whole() -> None:
    names = [case["name"] for case in TABLE["cases"]]
    assert len(set(names)) == len(names) >= 40
    steps = [step for case in TABLE["cases"] for step in case["steps"]]
    events = {kind for step in steps for kind in step["event"]} - {"of"}
    assert events == {
        "start",
        "stop",
        "follow",
        "unfollow",
        "hold",
        "resume",
        "item",
        "heard",
        "closed",
        "refused",
        "tick",
    }
    items = {step["event"]["item"]["t"] for step in steps if "item" in step["event"]}
    known = {"welcome", "subscribed", "messages", "head", "behind", "ended", "error", "drain", "expiring"}
    assert items == known
    actions = {kind for step in steps for action in step["actions"] for kind in action}
    assert actions == {
        *("connect", "close", "subscribe", "unsubscribe", "ping", "renew", "show", "show_head", "over", "failed"),
    }


def test_every_phase_is_reached_by_a_case() -> None:
    links: set[LinkPhase] = set()
    conversations: set[FollowPhase] = set()
    for case in TABLE["cases"]:
        for session, _ in run_case(case):
            links.add(session.link.phase)
            conversations.update(followed.phase for followed in session._book)
    assert links == set(LinkPhase)
    assert conversations == set(FollowPhase)


def test_a_session_follows_so_many_conversations_and_no_more() -> None:
    session: Delivery[int] = Delivery(DeliveryConfig(conversations_max=2), lambda: 0.5)
    session.follow("a", 0, False, 0)
    session.follow("b", 0, False, 0)
    session.follow("a", 7, False, 0)
    with pytest.raises(InvalidError, match="the most"):
        session.follow("c", 0, False, 0)
    session.unfollow("b")
    session.follow("c", 0, False, 0)


def test_a_number_below_zero_is_refused() -> None:
    session: Delivery[int] = Delivery(DeliveryConfig(), lambda: 0.5)
    with pytest.raises(InvalidError, match="after is -1"):
        session.follow("a", -1, False, 0)
    assert not session.is_followed("a")


@pytest.mark.parametrize(
    "bounds",
    [
        {"backoff_ms_min": 0},
        {"backoff_ms_min": 9, "backoff_ms_max": 8},
        {"retry_ms_min": 9, "retry_ms_max": 8},
        {"hold_ms": 0},
        {"conversations_max": 0},
    ],
)
def test_bounds_that_make_no_sense_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(InvalidError):
        DeliveryConfig(**bounds)


def test_pauses_double_up_to_their_maximum_and_chance_takes_a_share() -> None:
    assert [jittered_pause_ms(100, 500, tries, 1.0) for tries in (0, 1, 2, 3, 10_000)] == [100, 200, 400, 500, 500]
    assert jittered_pause_ms(100, 500, 2, 0.25) == 100
    assert jittered_pause_ms(100, 500, 2, 0.0) == 0


def test_moments_that_are_out_of_date_do_not_pile_up() -> None:
    """A stall is watched for with every item of a long catch-up."""
    session: Delivery[int] = Delivery(DeliveryConfig(), lambda: 0.5)
    session.start(0)
    session.follow("tea", 0, False, 0)
    session.item(1, WelcomeHeard(30_000), 0)
    session.item(1, SubscribedHeard(1, "tea", 0, 1_000, 1), 0)
    for n in range(500):
        session.item(1, MessagesHeard("tea", n, n + 1, 1_000, [(n + 1, n + 1)]), n)
    assert session.last_shown("tea") == 500
    assert len(session._book._dues) < 32
