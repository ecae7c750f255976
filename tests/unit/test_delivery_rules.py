"""Each rule of the delivery session, removed: the table of cases notices."""

from __future__ import annotations

from itertools import chain

import pytest

from tests.support import delivery_mutations
from tests.support.delivery_cases import TABLE, complaint_about, run_case
from tests.support.delivery_mutations import RemovedRule, removed


def is_noticed(rule: RemovedRule) -> bool:
    """Whether a case ends otherwise without a rule, or not at all."""
    with removed(rule):
        for case in TABLE["cases"]:
            try:
                if complaint_about(case) is not None:
                    return True
            except (AttributeError, KeyError, RecursionError, TypeError):
                return True
    return False


@pytest.mark.parametrize("rule", delivery_mutations.ALL, ids=lambda rule: rule.rule)
def test_the_table_notices_when_a_rule_is_gone(rule: RemovedRule) -> None:
    assert is_noticed(rule)


def test_nothing_stays_removed() -> None:
    assert [complaint_about(case) for case in TABLE["cases"] if complaint_about(case)] == []
    actions = chain.from_iterable(run_case(case) for case in TABLE["cases"])
    assert sum(len(given) for _, given in actions) > 200


def test_rules_have_names_of_their_own() -> None:
    names = [rule.rule for rule in delivery_mutations.ALL]
    assert len(set(names)) == len(names) >= 40
