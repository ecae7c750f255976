"""What every test may use, and the rule that unit and property tests run without a Ray cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest

_TESTS = Path(__file__).parent
_WITHOUT_RAY = (_TESTS / "unit", _TESTS / "property")


def _refuse_ray(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise AssertionError(
        "ray.init in a unit or property test: these run without a cluster (a fake will do); "
        "a test that needs one belongs in tests/integration"
    )


@pytest.fixture(autouse=True)
def no_ray_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` raises in tests/unit and tests/property: a test that starts a cluster by accident costs seconds."""
    if any(folder in request.path.parents for folder in _WITHOUT_RAY):
        monkeypatch.setattr("ray.init", _refuse_ray)


@pytest.fixture
def free_port() -> int:
    """A TCP port of loopback that was free a moment ago. Where the callee can take port 0, give it that instead."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of test data that is too large for the repository; the test is skipped where there is none."""
    folder = os.environ.get("IMRAY_TEST_DATA")
    if not folder:
        pytest.skip("IMRAY_TEST_DATA is not set: it names the folder with the test data that is not in the repository")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"IMRAY_TEST_DATA names {folder}, which is no folder")
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Two processes share the tests: those of one file stay together, as they share a system; those of the simulation
    share nothing, and take long, so each goes where there is room."""
    if not config.pluginmanager.has_plugin("xdist"):
        return
    simulation = _TESTS / "simulation"
    for item in items:
        if simulation not in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(_TESTS))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What a test logged may hold a lone surrogate, which the processes of xdist cannot tell one another."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
