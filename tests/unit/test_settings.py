"""Settings from the environment: names, types, and the names that they had."""

from __future__ import annotations

import pytest

from imray.core.errors import InvalidError
from imray.settings import Settings


def test_what_is_not_set_keeps_its_default() -> None:
    assert Settings.from_env({}) == Settings()


def test_values_have_the_type_of_their_default() -> None:
    changed = Settings.from_env({"IMRAY_CALL_TIMEOUT_S": "3.5", "IMRAY_HOT_TICKS": "2"})
    assert (changed.call_timeout_s, changed.hot_ticks) == (3.5, 2)
    with pytest.raises(InvalidError, match="IMRAY_HOT_TICKS='many' is not of type int"):
        Settings.from_env({"IMRAY_HOT_TICKS": "many"})


@pytest.mark.parametrize("text", ["-1", "nan", "inf"])
def test_a_number_is_finite_and_not_below_zero(text: str) -> None:
    with pytest.raises(InvalidError, match=r"IMRAY_CALL_TIMEOUT_S=.*: a number of at least 0"):
        Settings.from_env({"IMRAY_CALL_TIMEOUT_S": text})


def test_an_error_names_the_variable_that_was_read() -> None:
    with pytest.raises(InvalidError, match="IMRAY_HOT_TOPICS='abc' is not of type int"):
        Settings.from_env({"IMRAY_HOT_TOPICS": "abc"})


def test_a_former_name_is_taken_where_the_new_one_is_not_set() -> None:
    assert Settings.from_env({"IMRAY_HOT_TOPICS": "7"}).hot_partitions == 7
    assert Settings.from_env({"IMRAY_HOT_TOPICS": "7", "IMRAY_HOT_PARTITIONS": "3"}).hot_partitions == 3


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True)])
def test_a_switch_is_0_or_1(text: str, value: bool) -> None:
    assert Settings.from_env({"IMRAY_CONVERSATIONS_OPEN": text}).conversations_open is value
    for wrong in ("", "false", "2"):
        with pytest.raises(InvalidError, match=r"IMRAY_CONVERSATIONS_OPEN=.*: 0 or 1"):
            Settings.from_env({"IMRAY_CONVERSATIONS_OPEN": wrong})
