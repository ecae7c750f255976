"""What is installed is pinned, and every file of it is known by its hash."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_LOCKS = ("requirements.lock", "requirements-tools.lock", "k8s/requirements.lock")
_PIN = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?P<marker> ; [^\\]+)?(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)"
)


@cache
def _entries(lock: str) -> list[str]:
    """One line for each package: its continued lines are joined."""
    text = re.sub(r"\s*\\\n\s*", " ", (_ROOT / lock).read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _pins(lock: str) -> dict[str, str]:
    found = [_PIN.fullmatch(entry) for entry in _entries(lock)]
    return {pin["name"]: pin["version"] for pin in found if pin}


def _commands(file: str) -> list[str]:
    return re.sub(r"\s*\\\n\s*", " ", (_ROOT / file).read_text()).splitlines()


@pytest.mark.parametrize("lock", _LOCKS)
def test_every_line_is_one_version_with_hashes_and_names_no_server(lock: str) -> None:
    assert [entry for entry in _entries(lock) if not _PIN.fullmatch(entry)] == []
    assert len(_pins(lock)) == len(_entries(lock)) > 0


def test_what_builds_the_package_is_pinned_too() -> None:
    assert {"setuptools", "wheel"} <= _pins("requirements.lock").keys()
    assert "setuptools" in _pins("k8s/requirements.lock")


def test_all_that_the_project_asks_for_is_pinned() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    run = {re.split(r"[^\w.-]", asked)[0].lower() for asked in project["dependencies"]}
    develop = {re.split(r"[^\w.-]", asked)[0].lower() for asked in project["optional-dependencies"]["dev"]}
    assert run | develop <= _pins("requirements.lock").keys()
    assert run <= _pins("k8s/requirements.lock").keys()


def test_the_image_has_the_versions_that_are_tested() -> None:
    tested = _pins("requirements.lock")
    image = _pins("k8s/requirements.lock")
    assert {n: v for n, v in image.items() if tested.get(n, v) != v} == {}


@pytest.mark.parametrize("file", ["Makefile", "k8s/Dockerfile"])
def test_a_lock_is_installed_with_its_hashes_and_the_package_with_what_is_pinned(file: str) -> None:
    installs = [line for line in _commands(file) if "pip install" in line or "$(INSTALL)" in line]
    locked = [line for line in installs if re.search(r"requirements(-tools)?\.lock", line)]
    assert locked
    assert all("--require-hashes" in line or "$(LOCKED)" in line for line in locked)
    own = [line for line in installs if re.search(r" \.( |$)", line) or "$(EDITABLE)" in line]
    assert own
    assert all("--no-build-isolation" in line or "$(EDITABLE)" in line for line in own)
