"""One name for one thing: no class twice, one assignment a line, and no word that was given up."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source_files import name_of, python_files, source_files, tree_of

_PRODUCT = ("imray/", "api/", "analytics/")

_TWICE = {
    "Message": "the same thing on two sides of the wire: api.schemas, imray.client.models",
    "Hole": "the same thing on two sides of the wire: api.schemas, imray.client.models",
    "ShardStatus": "the figures of a shard, and the schema of their JSON: imray.core.status, api.schemas",
}
"""Classes that may have one name, and why."""

_GIVEN_UP = {
    "mark_durable": ("settle",),
    "log_position": ("place",),
    "ready_to_plan": ("worth",),
    "commit_in_flight": ("_in_air", "_air"),
    "when_idle": ("_between",),
    "ServerConnection": ("_Taker",),
    "handshake_timer": ("_stranger",),
    "send_frame, print": ("say", "_say"),
    "make_hot, hot_record": ("heat",),
    "make_cold, cold_record": ("cool",),
    "Endpoint, RequestRouter": ("Door",),
    "HotRoutes": ("Ways",),
    "is_final": ("arrived",),
    "update": ("learn",),
    "ShardWriter": ("Home",),
    "partitions": ("topics",),
}
"""By the plain word for it: identifiers that the product does not use any more."""
_MODULES_GIVEN_UP = {"backend": "engine", "asks": "rpc", "appends": "rpc"}
_WORDS = {word: plain for plain, words in _GIVEN_UP.items() for word in words}
_MAY_SAY: set[tuple[str, str]] = {
    ("imray/client/", "topics"),  # the public name
    ("imray/cli/", "topics"),
    ("api/groups.py", "topics"),
    ("api/schemas.py", "topics"),
}
# split, or this file would find itself
_PHRASES = {
    "has them " + "not": "does not contain them",
    "have them " + "not": "do not contain them",
    "until both come " + "together": "repeat until the fence directly follows the last segment read",
    "does the rest " + "alike": "then writes as a shard does",
    "out of the garbage collector's " + "sight": "so that full collections skip them",
    "What a gateway " + "stands on": "The gateway's API to all shards",
    "the only one who " + "numbers": "Assigns numbers for one shard",
}


def _product() -> Iterator[Path]:
    return (path for path in python_files() if name_of(path).startswith(_PRODUCT))


def _packed(tree: ast.Module) -> Iterator[int]:
    """Lines that pack several assignments into one: `a, b = x, y`. To unpack one call's result is none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            starred = any(isinstance(value, ast.Starred) for value in node.value.elts)
            if not starred and any(isinstance(target, ast.Tuple | ast.List) for target in node.targets):
                yield node.lineno


def _identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that is defined or used by a name."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.keyword(arg=str(name)):
                yield node.value.lineno, name
            case ast.alias(name=name, asname=asname):
                yield from ((node.lineno, part) for part in [*name.split("."), *filter(None, [asname])])


def _classes(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """The files in which each class of more than one definition is defined."""
    found: dict[str, list[str]] = defaultdict(list)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(file)
    return {name: files for name, files in found.items() if len(files) > 1}


def _said(file: str, tree: ast.Module) -> Iterator[str]:
    """Identifiers and modules of a file that were given up."""
    for line, name in _identifiers(tree):
        if name in _WORDS and not any(file.startswith(where) and name == word for where, word in _MAY_SAY):
            yield f"{file}:{line} {name}: say {_WORDS[name]}"
    if (plain := _MODULES_GIVEN_UP.get(Path(file).stem)) is not None:
        yield f"{file}: say {plain}"


def _phrase(text: str) -> str | None:
    """A phrase that was given up, however its lines break; None where a text has none."""
    plain = re.sub(r"[\s#]+", " ", text)
    return next((phrase for phrase in _PHRASES if phrase in plain), None)


def test_no_class_has_the_name_of_another() -> None:
    twice = _classes({name_of(path): tree_of(path) for path in _product()})
    assert {name: files for name, files in twice.items() if name not in _TWICE} == {}


def test_one_assignment_a_line() -> None:
    found = [f"{name_of(path)}:{line}" for path in _product() for line in _packed(tree_of(path))]
    assert found == []


def test_no_word_that_was_given_up() -> None:
    found = [text for path in _product() for text in _said(name_of(path), tree_of(path))]
    assert found == []


def test_no_phrase_that_was_given_up() -> None:
    found = []
    for path in source_files():
        try:
            phrase = _phrase(path.read_text())
        except UnicodeDecodeError:
            continue  # an image
        if phrase is not None:
            found.append(f"{name_of(path)}: {phrase}: say {_PHRASES[phrase]}")
    assert found == []


@pytest.mark.parametrize(
    ("code", "packed"),
    [
        ("a, b = x, y", True),
        ("self.a, self.b = a, b", True),
        ("a, b = b, a", True),
        ("a, b = f()", False),
        ("a = x, y", False),
        ("first, *others = *found, last", False),
        ("for a, b in pairs: pass", False),
    ],
)
def test_the_finder_of_packed_assignments(code: str, packed: bool) -> None:
    assert bool(list(_packed(ast.parse(code)))) is packed


@pytest.mark.parametrize(
    "code",
    [
        "def settle(): pass",
        "x.settle()",
        "f(place=1)",
        "def f(place): pass",
        "place = 1",
        "class Door: pass",
        "from api.door import Door",
        "from a import b as Home",
        "self._air()",
    ],
)
def test_the_finder_of_words(code: str) -> None:
    assert list(_said("imray/log/x.py", ast.parse(code)))


def test_the_finder_of_words_finds_no_others() -> None:
    tree = ast.parse("settled = log_position['place']\nreplace(x)\n'say'\ntopic = 1")
    assert list(_said("imray/log/x.py", tree)) == []
    assert list(_said("imray/engine/backend.py", ast.parse("")))
    assert list(_said("imray/client/x.py", ast.parse("topics = 1"))) == []
    assert list(_said("imray/log/x.py", ast.parse("topics = 1")))


def test_the_finder_of_classes() -> None:
    trees = {"a.py": ast.parse("class A: pass\nclass B: pass"), "b.py": ast.parse("def f():\n    class A: pass")}
    assert _classes(trees) == {"A": ["a.py", "b.py"]}


def test_the_finder_of_phrases() -> None:
    assert all(_phrase(f"it {phrase.replace(' ', chr(10) + '    # ', 1)} there") == phrase for phrase in _PHRASES)
    assert _phrase("it has them") is None
