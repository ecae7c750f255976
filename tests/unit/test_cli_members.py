"""`imray create` and `imray members` as a user meets them: what they ask, what they print, what they refuse."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imray.cli import run
from tests.support.fake_imray import LOSE_ANSWER, FakeImray, Server

Cli = Callable[..., tuple[int, str, str]]
PATH = "/v1/conversations/tea"
NOW = {"conv_id": "tea", "after": 7, "members": 2}


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeImray, str]]:
    app = FakeImray()
    server = Server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.up.wait(10)
    yield app, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def server(running: tuple[FakeImray, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeImray:
    """A fake server that the environment names; it is told what to answer."""
    app, url = running
    app.__init__()  # type: ignore[misc]
    monkeypatch.delenv("IMRAY_DATA", raising=False)
    monkeypatch.delenv("IMRAY_DEBUG", raising=False)
    monkeypatch.setenv("IMRAY_URL", url)
    monkeypatch.setenv("IMRAY_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    return app


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], server: FakeImray) -> Cli:
    """Run a command: its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        return code, *capsys.readouterr()

    return call


def asked(server: FakeImray) -> list[tuple[str, str, object]]:
    return [(method, path, content) for method, path, _, content in server.requests]


def test_create_says_whether_it_was_so_already(cli: Cli, server: FakeImray) -> None:
    server.script.extend([(201, NOW), (200, NOW)])
    command = ("create", "tea", "--public", "--member", "ada:owner", "--member", "bob", "--member", "a:b:reader")
    assert cli(*command) == (0, "tea is created, 2 members\n", "")
    assert cli(*command) == (0, "tea was so already, 2 members\n", "")
    members = [("ada", "owner"), ("bob", "member"), ("a:b", "reader")]
    body = {"public": True, "members": [{"user": user, "role": role} for user, role in members]}
    assert asked(server) == [("PUT", PATH, body)] * 2
    server.script.append((201, NOW | {"members": 1}))
    code, out, _ = cli("create", "tea", "--json")
    assert (code, json.loads(out)) == (0, NOW | {"members": 1, "created": True})
    assert asked(server)[-1] == ("PUT", PATH, {"public": False, "members": []})


def test_create_goes_on_over_a_lost_answer(cli: Cli, server: FakeImray) -> None:
    server.script.extend([LOSE_ANSWER, (200, NOW)])
    assert cli("create", "tea")[:2] == (0, "tea was so already, 2 members\n")


def test_members_are_listed_over_all_pages(cli: Cli, server: FakeImray) -> None:
    def page(user: str, role: str, after: str | None) -> tuple[int, object]:
        members = [{"user": user, "role": role}]
        return 200, {"conv_id": "tea", "public": False, "total": 2, "members": members, "next": after}

    pages = [page("ada", "owner", "ada"), page("bob\x1b[2J", "reader", None)]
    server.script.extend(pages)
    code, out, err = cli("members", "tea")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "user        role",
        "ada         owner",
        "bob\\x1b[2J  reader",
        "",
        "2 members; only they may read",
    ]
    assert [content for _, _, content in asked(server)] == [{"limit": ["1000"]}, {"limit": ["1000"], "after": ["ada"]}]
    server.script.extend(pages)
    members = [{"user": "ada", "role": "owner"}, {"user": "bob\x1b[2J", "role": "reader"}]
    assert json.loads(cli("members", "tea", "--json")[1]) == {"conv_id": "tea", "public": False, "members": members}


def test_members_are_added_before_others_are_removed(cli: Cli, server: FakeImray) -> None:
    server.script.extend([(200, NOW), (200, NOW | {"members": 1})])
    command = ("members", "tea", "--remove", "ada", "--add", "bob:owner", "--remove", "carl:x", "--add", "dora")
    assert cli(*command) == (0, "tea has 1 member; so it is after number 7\n", "")
    added = [{"user": "bob", "role": "owner"}, {"user": "dora", "role": "member"}]
    assert asked(server) == [
        ("POST", f"{PATH}/members:add", {"members": added}),
        ("POST", f"{PATH}/members:remove", {"users": ["ada", "carl:x"]}),
    ]


def test_nobody_is_removed_where_adding_is_refused(cli: Cli, server: FakeImray) -> None:
    server.script.append((403, {"detail": "only an owner may"}))
    code, out, err = cli("members", "tea", "--remove", "ada", "--add", "bob:owner")
    assert (code, out) == (2, "")
    assert "status 403: only an owner may" in err
    assert len(server.requests) == 1


@pytest.mark.parametrize("command", [("create", "tea", "--member"), ("members", "tea", "--add")])
@pytest.mark.parametrize("text", ["bob:king", "bob:", "bob:Owner"])
def test_a_mistyped_role_makes_no_user(cli: Cli, server: FakeImray, command: tuple[str, ...], text: str) -> None:
    code, out, err = cli(*command, text)
    assert (code, out) == (2, "")
    assert "is no role: owner, member or reader" in err
    assert server.requests == []


@pytest.mark.parametrize(
    ("command", "answer", "says"),
    [
        (("create", "tea"), (409, {"detail": "with other members"}), "409: with other members"),
        (("members", "tea"), (404, {"detail": "nobody created it"}), "404: nobody created it"),
        (("members", "tea", "--remove", "ada"), (422, {"detail": "the last owner"}), "422: the last owner"),
        (("members", "tea"), (401, {"detail": "expired"}), "401: expired"),
    ],
)
def test_refusals_are_one_line(
    cli: Cli, server: FakeImray, command: tuple[str, ...], answer: tuple[int, object], says: str
) -> None:
    server.script.append(answer)
    code, out, err = cli(*command)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
