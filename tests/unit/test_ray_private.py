"""What Ray keeps to itself may change with any release: whoever uses it says why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PARTS = ("imray", "api", "analytics", "benchmarks", "tests")
_PRIVATE = "ray._private"


def _uses(source: str) -> Iterator[int]:
    """Lines that import a private module of Ray, or reach into one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        if any(f"{name}.".startswith(f"{_PRIVATE}.") for name in names):
            yield node.lineno


def _unexplained(source: str) -> list[int]:
    """Those without a comment on the same line or on the line before."""
    lines = source.splitlines()
    return [n for n in sorted(set(_uses(source))) if "#" not in lines[n - 1] and not _is_comment(lines[: n - 1])]


def _is_comment(before: list[str]) -> bool:
    return bool(before) and before[-1].lstrip().startswith("#")


def test_every_use_of_rays_private_parts_says_why() -> None:
    files = [path for part in _PARTS for path in sorted((_ROOT / part).rglob("*.py"))]
    assert files
    found = {path.relative_to(_ROOT).as_posix(): _unexplained(path.read_text()) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_finder_finds() -> None:
    assert _unexplained("import ray\nfrom ray._private import worker\n") == [2]
    assert _unexplained("import ray._private.services as s\n") == [1]
    assert _unexplained("from ray import _private\n") == [1]
    assert _unexplained("import ray\nray._private.worker.f()\n") == [2]
    assert _unexplained("# because\nfrom ray._private import worker\n") == []
    assert _unexplained("from ray._private import worker  # because\n") == []
    assert _unexplained("from ray.util import state\n") == []
