"""Settings from the environment: names, types, and the names that they had."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from imray.core.errors import InvalidError
from imray.settings import BOUNDS, Settings

_PAGE = Path(__file__).parents[2] / "docs/history.md"
_SETTING = re.compile(r"^\| `(\w+)` \| [^|]+ \| ([^|]+?) \|", re.MULTILINE)


def test_what_is_not_set_keeps_its_default() -> None:
    assert Settings.from_env({}) == Settings()


def test_values_have_the_type_of_their_default() -> None:
    changed = Settings.from_env({"IMRAY_CALL_TIMEOUT_S": "3.5", "IMRAY_HOT_TICKS": "2"})
    assert (changed.call_timeout_s, changed.hot_ticks) == (3.5, 2)
    with pytest.raises(InvalidError, match="IMRAY_HOT_TICKS='many' is not of type int"):
        Settings.from_env({"IMRAY_HOT_TICKS": "many"})


@pytest.mark.parametrize("name", ["IMRAY_CALL_TIMEOUT_S", "IMRAY_COMMIT_ROWS_MAX"])
@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e300", str(2**63), "9" * 20])
def test_a_number_is_finite_and_not_below_zero_and_fits_64_bits(name: str, text: str) -> None:
    with pytest.raises(InvalidError, match=rf"{name}=.*: a number from 0 to {2**63 - 1}|is not of type int"):
        Settings.from_env({name: text})


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_what_merging_rests_on_has_bounds_in_the_environment(name: str) -> None:
    low, high = BOUNDS[name]
    kind = type(getattr(Settings(), name))
    variable = f"IMRAY_{name.upper()}"
    assert low <= getattr(Settings(), name) <= high
    for value in (low, high):
        assert getattr(Settings.from_env({variable: str(value)}), name) == kind(value)
    for value in (0, -1, kind(low / 2), kind(high * 2), "9" * 20):
        with pytest.raises(InvalidError, match=rf"^{variable}='{value}': a number from {low} to {high}$"):
            Settings.from_env({variable: str(value)})
    Settings(**{name: 0})  # a program is free


def test_every_setting_of_the_history_has_bounds_and_the_page_says_them() -> None:
    names = {f.name for f in fields(Settings) if f.name.startswith(("merge_", "run_", "read_s", "pin_s", "orphan_"))}
    assert names < set(BOUNDS)
    said = dict(_SETTING.findall(_PAGE.read_text()))
    assert {name: said.get(name) for name in BOUNDS} == {
        name: " to ".join(_shown(name, value) for value in bounds) for name, bounds in BOUNDS.items()
    }


def _shown(name: str, value: float) -> str:
    """A bound as the page has it."""
    if "bytes" not in name:
        return f"{value:,}".replace(",", " ")
    power = max(i for i in range(4) if value >= 1024**i)
    return f"{value / 1024**power:g} {('bytes', 'KB', 'MB', 'GB')[power]}"


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
