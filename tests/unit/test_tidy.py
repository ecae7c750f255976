"""The rules of the house, kept by a test: sizes, which way imports run, and what no file may say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source_files import ROOT, name_of, python_files, source_files, tree_of

_FILE_LINES_MAX = 330
_FUNCTION_LINES_MAX = 60

_CORE_MAY_IMPORT = {
    *("__future__", "abc", "array", "base64", "binascii", "bisect", "collections", "copy", "dataclasses", "enum"),
    *("functools", "hashlib", "heapq", "itertools", "math", "operator", "re", "string", "struct", "types", "typing"),
    *("uuid", "zlib"),  # uuid to read one: making one is random, see _IMPURE
    *("numpy", "xxhash", "msgspec", "imray"),
}
_KERNELS_MAY_IMPORT = _CORE_MAY_IMPORT | {"numba", "llvmlite"}
_PURE = {"imray.core": _CORE_MAY_IMPORT, "imray.kernels": _KERNELS_MAY_IMPORT}
_IMPURE = re.compile(r"\b(uuid[1-8]\(|(datetime|date)\.(now|utcnow|today)|np\.random|numpy\.random|open\()")

_ARROWS = {
    "imray": set(),  # settings and the version: whoever needs them
    "imray.kernels": set(),
    "imray.core": {"imray.kernels"},
    "imray.log": {"imray.core", "imray.kernels"},
    "imray.history": {"imray.log", "imray.core", "imray.kernels"},
    "imray.rpc": {"imray.core"},
    "imray.client": {"imray.core"},
    "imray.shard": {"imray.rpc", "imray.history", "imray.log", "imray.core", "imray.kernels"},
    "imray.engine": {"imray.rpc", "imray.log", "imray.core"},
    "analytics": {"imray.history", "imray.log", "imray.core"},
    "api": {"imray.engine", "analytics", "imray.log", "imray.core"},
    "imray.deploy": {
        *("api", "analytics", "imray.engine", "imray.shard", "imray.history", "imray.rpc", "imray.log", "imray.core"),
    },
    "imray.cli": {"imray.core", "imray.log", "imray.history", "imray.client", "imray.deploy", "analytics", "api"},
}
"""What each part may import of the others. Below `imray` itself lies `imray.core` (its errors) only."""

_ONLY_IN = {
    "ray": {"imray.deploy"},
    "duckdb": {"analytics"},
    "fastapi": {"api"},
    "starlette": {"api"},
    "uvicorn": {"api"},
    "pickle": set(),  # what comes over a connection is never executed
}

_FORBIDDEN_TEXT = {
    # split, or this file would find itself
    "a path of the developing machine": "/wo" + "rk/",
    "the shared folder": "shared" + "/data",
    "a registry's host": "pypi" + ".org",
    "a registry's file host": "files.python" + "hosted",
}
_MAY_SAY = {(".ci/run", "the shared folder")}  # the one place that knows where the test data lies


def _part(module: str) -> str | None:
    """The part of the house a module (or a file's dotted path) belongs to."""
    packages = [p for p in _ARROWS if module == p or module.startswith(p + ".")]
    return max(packages, key=len, default=None)


def _imports(tree: ast.Module, package: str = "") -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever it stands; relative ones are resolved against the file's package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _house() -> Iterator[tuple[Path, str, list[tuple[int, str]]]]:
    """(file, part, imports) of the files of the house itself: no tests, no benchmarks."""
    for path in python_files():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        part = _part(module)
        if part is not None:
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            yield path, part, list(_imports(tree_of(path), package))


def _wrong_arrow(part: str, module: str) -> bool:
    target = _part(module)
    if target is None or target in (part, "imray"):
        # plain `imray` is its version and its settings; core is pure and knows neither
        return part in _PURE and target == "imray"
    if part == "imray":
        return target != "imray.core"
    return target not in _ARROWS[part]


def _names_code(text: str) -> bool:
    """Whether a text names a function of the house, as "module:function"."""
    module, colon, function = text.partition(":")
    return bool(colon) and function.isidentifier() and _part(module) is not None


def _long_functions(tree: ast.Module) -> Iterator[tuple[int, str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > _FUNCTION_LINES_MAX:
                yield node.lineno, node.name, lines


def _swallowed(tree: ast.Module) -> Iterator[int]:
    """Lines of handlers that catch everything and do nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            everything = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if everything and all(isinstance(s, ast.Pass) for s in node.body):
                yield node.lineno


def test_there_are_files() -> None:
    assert {"imray.core", "imray.log", "imray.shard", "api"} <= {part for _, part, _ in _house()}


def test_files_are_short() -> None:
    sizes = {name_of(path): len(path.read_text().splitlines()) for path in python_files()}
    assert {name: n for name, n in sizes.items() if n > _FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    found = [
        f"{name_of(p)}:{line} {name}: {n} lines"
        for p in python_files()
        for line, name, n in _long_functions(tree_of(p))
    ]
    assert found == []


def test_core_is_pure() -> None:
    impure = [
        f"{name_of(path)}:{line} imports {module}"
        for path, part, imports in _house()
        if part in _PURE
        for line, module in imports
        if module.split(".")[0] not in _PURE[part]
    ]
    impure += [
        f"{name_of(path)}: {found[0]}"
        for path, part, _ in _house()
        if part in _PURE
        for found in _IMPURE.finditer(path.read_text())
    ]
    assert impure == []


def test_arrows_run_one_way() -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path, part, imports in _house()
        for line, module in imports
        if _wrong_arrow(part, module)
    ]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(_ONLY_IN))
def test_one_folder_touches(package: str) -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path, part, imports in _house()
        if part not in _ONLY_IN[package]
        for line, module in imports
        if module.split(".")[0] == package
    ]
    assert wrong == []


def test_no_import_hides_in_a_text() -> None:
    """An arrow that is drawn at run time would be seen by no other rule."""
    texts = [
        f"{name_of(path)}:{node.lineno} {node.value}"
        for path, _, _ in _house()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _names_code(node.value)
    ]
    assert texts == []


def test_nothing_swallows_every_error() -> None:
    assert [f"{name_of(p)}:{line}" for p in python_files() for line in _swallowed(tree_of(p))] == []


@pytest.mark.parametrize("what", sorted(_FORBIDDEN_TEXT))
def test_no_file_mentions(what: str) -> None:
    text = _FORBIDDEN_TEXT[what].encode()
    found = [name_of(p) for p in source_files() if (name_of(p), what) not in _MAY_SAY and text in p.read_bytes()]
    assert found == []


@pytest.mark.parametrize(
    ("part", "module", "wrong"),
    [
        ("imray.core", "imray.log.store", True),
        ("imray.core", "imray.settings.Settings", True),
        ("imray.log", "imray.core.ids", False),
        ("imray.log", "imray.shard.write_loop", True),
        ("imray.client", "imray.log.schema", True),
        ("imray.shard", "imray.settings.Settings", False),
        ("imray.engine", "api.app", True),
        ("analytics", "imray.engine.engine", True),
        ("api", "analytics.history", False),
        ("api", "imray.cli.up", True),
        ("imray.cli", "api.auth", False),
        ("imray", "imray.core.errors", False),
        ("imray", "imray.log.store", True),
        ("api", "imrayish", False),
    ],
)
def test_the_arrow_rule_itself(part: str, module: str, wrong: bool) -> None:
    assert _wrong_arrow(part, module) is wrong


def test_the_finders_find() -> None:
    body = "\n".join("    x = 1" for _ in range(_FUNCTION_LINES_MAX))
    assert [name for _, name, _ in _long_functions(ast.parse(f"def long():\n{body}\n"))] == ["long"]
    assert list(_swallowed(ast.parse("try:\n    f()\nexcept Exception:\n    pass\n"))) == [3]
    assert list(_swallowed(ast.parse("try:\n    f()\nexcept OSError:\n    pass\n"))) == []
    relative = ast.parse("from . import up\nfrom ..log import store\n")
    assert [m for _, m in _imports(relative, "imray.cli")] == ["imray.cli.up", "imray.log.store"]
    assert _IMPURE.search("x = datetime.now()")
    assert _names_code("api.app:create_app")
    assert not _names_code("api: what it is")
