"""Names in prose are real: each path, file and dotted name that a page or a docstring puts between backticks exists.

What is looked at, by the form of what stands between the backticks:
- a path: its first part is a folder of the repository (`docs/log.md`), or it ends as a source file does;
- a file's name alone (`test_tidy.py`): it stands beside the page, or beside a path named before in the paragraph;
- a dotted name that begins with one of our packages, or with a capital letter as a class does (`WriteLoop.append`).
Links between pages, `make` commands and the README's map of the folders are looked up, too.
Everything else (other commands, JSON keys, variables, names of other libraries) has another form and is left out; so is
a pattern for names to come (NNNN). Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from test_tidy import _ARROWS

from tests.support.source_files import ROOT, name_of, source_files, tree_of

_PAGES = re.compile(r"(docs/.*|benchmarks/.*|k8s/.*|examples/.*|[^/]*)\.md")
_SOURCES = ("imray", "api", "analytics", "benchmarks", "examples")
_PACKAGES = (*_SOURCES[:-1], "tests")

_CODE_BLOCK = re.compile(r"^```.*?^```|^(?: {4}|\t).*?$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(`+)(.+?)\1(?!`)", re.DOTALL)
_BREAK = re.compile(r"\n\s*\n")
_PATH = re.compile(r"[\w.*-]+(/[\w.*-]+)*/?")
_SOURCE_FILE = re.compile(r"[\w*-]+\.(py|md|sql|ya?ml|toml|sh|svg)")
_LINK = re.compile(r"\]\(([^)#:\s]+)[^):]*\)")
_MAP_LINE = re.compile(r"^\| `([\w/]+)` \|.*\| ([^|]+) \|$", re.MULTILINE)
_DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(\(\))?")

_LEFT_OUT = {
    "imray.json": "a file of the data folder",
    "imray.digest": "a key of a segment's metadata",
    "benchmarks/results": "made by a run",
    "imray.v1.json": "a sub-protocol",
    "imray.v1.msgpack": "a sub-protocol",
}


@dataclass
class _Class:
    """What a class defines itself, and the names of its bases."""

    names: set[str] = field(default_factory=set)
    bases: set[str] = field(default_factory=set)


@cache
def _files() -> frozenset[str]:
    return frozenset(name_of(path) for path in source_files())


@cache
def _folders() -> frozenset[str]:
    return frozenset(parent.as_posix() for name in _files() for parent in Path(name).parents)


def _tree(name: str) -> ast.Module:
    return tree_of(ROOT / name)


def _module_file(module: str) -> str | None:
    path = module.replace(".", "/")
    return next((f for f in (f"{path}.py", f"{path}/__init__.py") if f in _files()), None)


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement binds where it stands."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
    elif isinstance(node, ast.If | ast.Try | ast.With):
        inner = [child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
        yield from (name for child in inner for name in _bound(child))
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


@cache
def _module_names(name: str) -> frozenset[str]:
    return frozenset(bound for node in _tree(name).body for bound in _bound(node))


def _own_attributes(method: ast.AST) -> Iterator[str]:
    """x of each `self.x = ...`."""
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            yield node.attr


@cache
def _classes() -> dict[str, list[_Class]]:
    """All classes of the repository by name."""
    found: dict[str, list[_Class]] = defaultdict(list)
    for name in sorted(_files()):
        if name.endswith(".py") and name.split("/")[0] in (*_PACKAGES, "examples"):
            for node in ast.walk(_tree(name)):
                if isinstance(node, ast.ClassDef):
                    names = {bound for inner in node.body for bound in _bound(inner)} | set(_own_attributes(node))
                    bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
                    found[node.name].append(_Class(names, bases))
    return found


def _class_has(class_name: str, chain: list[str]) -> bool:
    """Whether a class of this name has the attribute, itself or from a base of ours. Deeper than that is not looked."""
    if not chain:
        return True
    return any(
        chain[0] in found.names or any(_class_has(base, chain) for base in found.bases if base != class_name)
        for found in _classes().get(class_name, [])
    )


def _resolves(dotted: str) -> bool:
    """Whether a dotted name that begins with a package of ours, or with a class, is one of the repository's."""
    parts = dotted.split(".")
    if parts[0] not in _PACKAGES:
        return _class_has(parts[0], parts[1:])
    for end in range(len(parts), 0, -1):
        file = _module_file(".".join(parts[:end]))
        if file is not None:
            rest = parts[end:]
            if not rest:
                return True
            return rest[0] in _module_names(file) and (rest[0] not in _classes() or _class_has(rest[0], rest[1:]))
    return dotted.replace(".", "/") in _folders()


def _exists(path: str, folders: Iterable[str]) -> bool:
    """Whether a path leads to a file or folder from the root, or from one of these folders."""
    wanted = path.rstrip("/")
    for folder in ("", *folders):
        full = f"{folder}/{wanted}".lstrip("/")
        if full in _files() or full in _folders() or ("*" in full and any(ROOT.glob(full))):
            return True
    return False


def _wrong(span: str, folders: Iterable[str]) -> bool:
    """Whether what stands between backticks names something of the repository that is not there."""
    if span.rstrip("/") in _LEFT_OUT or "NNNN" in span:
        return False
    dotted = _DOTTED.fullmatch(span)
    if dotted is not None and _is_ours(dotted[1]):
        return not _resolves(dotted[1])
    if _SOURCE_FILE.fullmatch(span):
        return not _exists(span, folders)
    if "/" in span and _PATH.fullmatch(span):
        ours = span.split("/")[0] in _folders() or _SOURCE_FILE.fullmatch(span.rsplit("/", 1)[1]) is not None
        return ours and not _exists(span, folders)
    return False


def _is_ours(dotted: str) -> bool:
    """Whether a dotted name begins with a package of ours, or as a class does that is not Python's own."""
    first = dotted.split(".")[0]
    return first in _PACKAGES or (first[0].isupper() and not first.isupper() and not hasattr(builtins, first))


def wrong_names(text: str, beside: str = "") -> list[tuple[int, str]]:
    """(line, name) of each name between backticks that is not there. `beside`: the folder of the file.

    A file's name alone is looked for there, and in the folders of the paths that its paragraph names before it."""
    prose = _CODE_BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    found: list[tuple[int, str]] = []
    at = 0
    for end in [*(gap.start() for gap in _BREAK.finditer(prose)), len(prose)]:
        # a backtick that is missing spoils its own paragraph only
        folders = [beside]
        for span in _SPAN.finditer(prose, at, end):
            name = " ".join(span[2].split())
            if _wrong(name, folders):
                found.append((1 + prose.count("\n", 0, span.start()), name))
            if "/" in name:
                folders += [name.rstrip("/"), name.rpartition("/")[0]]
        at = end
    return found


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(first line, text) of each string that is a statement of its own: docstrings, and those below a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            # a docstring's later lines are indented as the code is
            yield node.lineno, re.sub(r"\n +", "\n", node.value.value)


def _complaints(name: str, texts: Iterable[tuple[int, str]]) -> list[str]:
    beside = Path(name).parent.as_posix()
    folder = "" if beside == "." else beside
    return [f"{name}:{first + line - 1} {bad}" for first, text in texts for line, bad in wrong_names(text, folder)]


def test_pages_name_what_is_there() -> None:
    pages = [name for name in sorted(_files()) if _PAGES.fullmatch(name)]
    assert len(pages) > 5
    wrong = [bad for name in pages for bad in _complaints(name, [(1, (ROOT / name).read_text())])]
    assert not wrong, "\n".join(wrong)


def test_links_lead_somewhere() -> None:
    pages = [name for name in sorted(_files()) if _PAGES.fullmatch(name)]
    links = [(name, link) for name in pages for link in _LINK.findall((ROOT / name).read_text())]
    assert len(links) > 10
    assert [(name, link) for name, link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_make_commands_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        command
        for name in sorted(_files())
        if _PAGES.fullmatch(name)
        for command in re.findall(r"(?:`|^ {4})make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE)
    }
    assert len(named) > 5
    assert named - targets == set()


def test_the_map_of_the_readme_is_that_of_the_imports() -> None:
    rows = dict(_MAP_LINE.findall((ROOT / "README.md").read_text()))
    found = {part: set(re.findall(r"`([\w/]+)`", others)) for part, others in rows.items()}
    wanted = {
        part.replace(".", "/"): {other.replace(".", "/") for other in others}
        for part, others in _ARROWS.items()
        if part != "imray"  # its settings are for all
    }
    assert found == wanted


def test_the_glossary_has_each_word_once() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) > 50
    assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize("package", _SOURCES)
def test_docstrings_name_what_is_there(package: str) -> None:
    sources = [name for name in sorted(_files()) if name.startswith(f"{package}/") and name.endswith(".py")]
    assert sources
    wrong = [bad for name in sources for bad in _complaints(name, _docstrings(_tree(name)))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "imray/log/no_such_file.py",
        "docs/nothing.md",
        "tests/nowhere",
        "no_such_file.py",
        "somewhere/else.py",
        "tests/unit/test_no*.py",
        "imray.core.no_such_module",
        "imray.core.errors.NoSuchError",
        "imray.core.errors.CorruptError.no_such_field",
        "AsyncClient.no_such_method",
        "NoSuchClass.append()",
    ],
)
def test_the_finder_finds(name: str) -> None:
    assert wrong_names(f"One.\n\nTwo, `{name}` and\n`README.md`.\n") == [(3, name)]


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "docs/log.md", "imray/core", "tests/unit/", "tests/unit/test_d*.py"),
        *("imray.core", "imray.core.errors.CorruptError.file", "imray.client.AsyncClient.send", "ConflictError.detail"),
        *("imray.json", "benchmarks/results/", "run/up.log", "wal/shard=0007/1.parquet", "/v1/status", "GET /v1/x"),
        *("jwt.decode", "StopIteration.value", "blocks.closed", "IMRAY_URL", "imray up --demo", "conv_id", "a/b"),
        *("k8s/", "imray.settings.Settings", "asyncio.timeout", "imray.deploy"),
    ],
)
def test_the_finder_lets_pass(name: str) -> None:
    assert wrong_names(f"See `{name}`.") == []


def test_code_blocks_and_lost_backticks_stay_by_themselves() -> None:
    block = "```sh\nls `nowhere/file.py`\n```\n\n    `no_such_file.py`\n\n"
    assert wrong_names(f"A lost ` one.\n\n{block}Then `no_such_file.py`.") == [(9, "no_such_file.py")]
    assert wrong_names("A name over two lines: `imray audit\nsome/file.py`.") == []
    source = 'def f():\n    """One.\n\n    `Nowhere.at_all`"""\n'
    assert _complaints("imray/x.py", _docstrings(ast.parse(source))) == ["imray/x.py:4 Nowhere.at_all"]
