"""Folders and files that others could have had a hand in are refused, with the command that mends it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imray.core.errors import InvalidError
from imray.log import private

_STRANGER = 54_321


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    """What is closed must be closed by the code, not by the umask of whoever runs it."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder as it is in use."""
    folder = tmp_path / "chat"
    with private.make_run(folder) as run:
        run.write("up.json", b"{}")
        run.secret("jwt.key", make=True)
    for name in ("wal", "checkpoint", "sealed", "history", "merged", "pins", "verified", "tmp"):
        (folder / name).mkdir(mode=0o750)
    (folder / "imray.json").touch(0o640)
    return folder


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it another user's; without the right to do so, be another user than its owner."""
    if os.geteuid() == 0:
        os.chown(path, _STRANGER, _STRANGER, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: _STRANGER)


def use(data: Path) -> None:
    """What `imray up` does with a folder."""
    with private.make_run(data) as run:
        run.read("up.json")
        run.secret("jwt.key", make=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_what_is_made_is_closed_to_others(data: Path) -> None:
    assert mode(data) == 0o750
    assert mode(data / "run") == 0o700
    assert {mode(path) for path in (data / "run").iterdir()} == {0o600}
    with private.make_run(data) as run:
        os.close(run.new_file("up.log"))
    assert mode(data / "run" / "up.log") == 0o600


def test_a_folder_of_the_earlier_version_is_closed_and_not_refused(data: Path) -> None:
    (data / "run").chmod(0o755)
    (data / "run" / "up.log").write_text("token")
    (data / "run" / "up.log").chmod(0o644)
    data.chmod(0o755)
    use(data)
    assert mode(data / "run") == 0o700
    assert mode(data / "run" / "up.log") == 0o600


@pytest.mark.parametrize(
    "name",
    [
        "run",
        "run/up.json",
        "run/jwt.key",
        "imray.json",
        "wal",
        "tmp",
        "sealed",
        "history",
        "merged",
        "pins",
        "verified",
    ],
)
def test_a_link_is_refused(data: Path, name: str) -> None:
    moved = data.parent / "elsewhere"
    (data / name).rename(moved)
    (data / name).symlink_to(moved)
    with pytest.raises(InvalidError, match=rf"{data / name} is a link.*`rm {data / name}`"):
        use(data)


def test_a_link_in_the_place_of_a_log_is_not_written_through(data: Path) -> None:
    victim = data.parent / "victim"
    victim.write_text("dear")
    (data / "run" / "up.log").symlink_to(victim)
    with private.make_run(data) as run:
        os.close(run.new_file("up.log"))
    assert victim.read_text() == "dear"
    assert (data / "run" / "up.log").is_file()
    assert not (data / "run" / "up.log").is_symlink()


@pytest.mark.parametrize("name", [".", "run", "run/up.json", "run/jwt.key", "imray.json", "wal", "tmp"])
def test_what_belongs_to_another_is_refused(data: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(data / name, monkeypatch)
    with pytest.raises(InvalidError, match=r"belongs to user .* run imray as that user .*`chown -R "):
        use(data)


@pytest.mark.parametrize("bit", [0o020, 0o002])
@pytest.mark.parametrize("name", [".", "run", "run/up.json", "run/jwt.key", "imray.json", "wal", "tmp"])
def test_what_others_may_write_to_is_refused(data: Path, name: str, bit: int) -> None:
    path = data / name
    path.chmod(mode(path) | bit)
    with pytest.raises(InvalidError, match=rf"{path} may be written to by other users .*`chmod -R go-w {path}`"):
        use(data)
    path.chmod(mode(path) & ~0o022)
    use(data)


def test_a_key_that_others_may_read_is_refused(data: Path) -> None:
    key = data / "run" / "jwt.key"
    key.chmod(0o640)
    with pytest.raises(InvalidError, match=rf"`rm {key}`"):
        use(data)
    key.unlink()
    use(data)


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(data: Path) -> None:
    (data / "run" / "up.json").unlink()
    os.mkfifo(data / "run" / "up.json", 0o600)
    with pytest.raises(InvalidError, match="is no plain file"):
        use(data)


def test_those_that_only_look_find_the_same_faults_and_change_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "run").chmod(0o755)
    run = private.find_run(data)
    assert run is not None
    with run:
        assert run.read("up.json") == b"{}"
        assert run.read("nothing") is None
    assert mode(data / "run") == 0o755
    (data / "run").chmod(0o777)
    with pytest.raises(InvalidError, match="chmod"):
        private.find_run(data)
    (data / "run").chmod(0o700)
    give_away(data / "run", monkeypatch)
    with pytest.raises(InvalidError, match="belongs to"):
        private.find_run(data)
    assert private.find_run(data / "nowhere") is None
    assert private.find_run(data / "wal") is None


def test_a_shared_volume_may_be_its_groups_but_its_run_folder_is_closed(data: Path) -> None:
    for path in (data, data / "wal", data / "tmp", data / "run"):
        path.chmod(0o2770)
    (data / "run" / "up.json").chmod(0o660)
    with private.make_run(data, shared=True) as run:
        assert run.read("up.json") == b"{}"
    assert mode(data / "run") & 0o777 == 0o700
    assert mode(data / "run" / "up.json") == 0o600
    (data / "run").chmod(0o707)
    with pytest.raises(InvalidError, match="chmod"):
        private.make_run(data, shared=True)


def test_of_many_that_make_a_secret_all_get_the_same(tmp_path: Path) -> None:
    def one(_: int) -> bytes | None:
        with private.make_run(tmp_path / "chat") as run:
            return run.secret("ray.token", make=True)

    with ThreadPoolExecutor(8) as pool:
        got = set(pool.map(one, range(64)))
    assert len(got) == 1
    (secret,) = got
    assert secret is not None
    assert len(secret) == 64
    assert [path.name for path in (tmp_path / "chat" / "run").iterdir()] == ["ray.token"]


def test_ones_own_link_to_a_data_folder_is_followed_and_anothers_is_not(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = data.parent / "link"
    link.symlink_to(data)
    assert private.resolved(link) == data.resolve()
    give_away(link, monkeypatch)
    with pytest.raises(InvalidError, match="name the folder that you mean"):
        private.resolved(link)


def test_a_folder_above_that_all_may_write_to_is_refused(tmp_path: Path) -> None:
    above = tmp_path / "team"
    above.mkdir()
    above.chmod(0o777)
    with pytest.raises(InvalidError, match="chmod o-w"):
        private.make_run(above / "chat")
    above.chmod(0o1777)
    private.make_run(above / "chat").__exit__(None, None, None)
