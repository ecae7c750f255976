"""Who pays for what a connection holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from api.limits import Limits
from imray.settings import Settings


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_a_network_that_one_customer_gets_is_one_peer(one: str, other: str, same: bool) -> None:
    limits = Limits(replace(Settings(), connections_per_peer_max=1))
    closed: list[str] = []
    assert limits.account(one).admit(lambda: closed.append(one)) is None
    assert limits.account(other).admit(lambda: closed.append(other)) is None
    assert closed == ([one] if same else [])


def test_two_connections_of_one_subject_share_its_budget_whoever_comes_and_goes() -> None:
    limits = Limits(replace(Settings(), flight_bytes_per_caller_max=100))
    first, second, third = (limits.account(f"10.0.0.{i}") for i in range(3))
    for account in (first, second, third):
        account.begin()
        account.subject = "ada"
        account.identify()
    second.end()  # with nothing held: ada must not be forgotten while the others pay through her
    assert first.take_asked(60)
    assert not third.take_asked(60)
    third.charge_asked(third.asked)
    assert limits.bytes == 60
    first.end()
    third.end()
    assert (limits.bytes, limits.callers()) == (0, [])


def test_the_next_request_of_a_connection_is_paid_by_who_makes_it() -> None:
    limits = Limits(Settings())
    account = limits.account("10.0.0.1")
    account.subject = "ada"
    account.identify()
    account.take_asked(10)
    assert limits.usage("subject ada").bytes == 10
    account.charge_asked(account.asked)
    account.begin()
    account.take_asked(5)
    assert limits.usage("peer 10.0.0.1").bytes == 5


def test_an_answer_counts_until_it_is_read() -> None:
    limits = Limits(replace(Settings(), flight_bytes_per_caller_max=100))
    account = limits.account("10.0.0.1")
    assert account.take_answer(500, always=False)  # however large, where nothing else is held
    account.blocked = True
    account.answer_written(500)
    assert limits.bytes == 500
    assert not account.take_answer(1, always=False)
    assert account.take_answer(1, always=True)
    account.answer_written(1)
    account.charge_written()
    assert limits.bytes == 0
    assert account.take_answer(50, always=False)
    account.end()
    assert limits.bytes == 0
    account.answer_written(50)
    assert limits.bytes == 0
