"""The files of the repository, and what they hold as Python, for the tests that keep the rules of the house."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def source_files() -> list[Path]:
    """Tracked and new files, as git sees them."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    return [path for name in sorted(set(filter(None, names))) if (path := ROOT / name).is_file()]


@cache
def python_files() -> list[Path]:
    """Those of Python."""
    return [path for path in source_files() if path.suffix == ".py"]


@cache
def tree_of(path: Path) -> ast.Module:
    """A file of Python, parsed."""
    return ast.parse(path.read_text(), filename=str(path))


def name_of(path: Path) -> str:
    """The path from the root of the repository."""
    return path.relative_to(ROOT).as_posix()
