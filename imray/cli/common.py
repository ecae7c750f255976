"""What the commands share: which system they speak to, and how they print. Owns no command."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from imray.cli import own_process
from imray.cli.up import read_info
from imray.core.errors import InvalidError, UnavailableError

DATA_DEFAULT = Path("imray-data")

Url = Annotated[str | None, typer.Option("--url", help="The gateway, such as http://localhost:8080 [IMRAY_URL].")]
Token = Annotated[str | None, typer.Option("--token", help="Bearer token [IMRAY_TOKEN].")]
Data = Annotated[
    Path | None,
    typer.Option("--data", help=f"Data folder; url and token as `imray up` left them [IMRAY_DATA, ./{DATA_DEFAULT}]."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.1, metavar="S", help="Seconds until an unanswered call is given up.")
]

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Target:
    """A running system and the right to speak to it."""

    url: str
    token: str


def find_target(url: str | None, token: str | None, data: Path | None, env: Mapping[str, str] = os.environ) -> Target:
    """Where to speak to. An option goes before the environment, and that before ./imray-data.

    A folder's development token goes to that folder's own url or to one that is named together with the folder."""
    if url is None and data is None:
        url = env.get("IMRAY_URL") or None
    info: Mapping[str, Any] = {}
    if url is None or data is not None:
        folder = find_data(data, env)
        info = _read_info(folder) or {}
        if info.get("address") is None and "started" in info and not own_process.runs(info):
            # whoever listens on its port now would be handed the folder's token
            how = f"`imray up --data {shlex.quote(str(folder))}` starts it again"
            raise InvalidError(f"what ran over {folder} has ended without `imray down`: {how}")
    url = url or info.get("url")
    if not url:
        where = f"nothing runs over {data}" if data else "no server is named"
        raise InvalidError(f"{where}: start one with `imray up --data DIR`, or pass --url (IMRAY_URL)")
    token = token or env.get("IMRAY_TOKEN") or info.get("token")
    if not token:
        raise InvalidError(
            f"no token for {url}: pass --token or set IMRAY_TOKEN (`imray token --data DIR` makes one for development)"
        )
    return Target(url, token)


def find_data(data: Path | None, env: Mapping[str, str] = os.environ) -> Path:
    """The data folder that a command works on."""
    return data or Path(env.get("IMRAY_DATA") or DATA_DEFAULT)


def find_log(data: Path | None) -> Path:
    """As `find_data`, for commands that read the log; InvalidError where there is none."""
    folder = find_data(data)
    if not (folder / "imray.json").is_file():
        raise InvalidError(f"{folder} is no data folder (it has no imray.json): name one with --data (IMRAY_DATA)")
    return folder


def _read_info(data: Path) -> Mapping[str, Any] | None:
    try:
        return read_info(data)
    except (OSError, ValueError) as e:
        raise InvalidError(f"{data / 'run' / 'up.json'} cannot be read ({e}): pass --url and --token") from e


@contextmanager
def speaking_to(target: Target) -> Iterator[None]:
    """Errors inside name the server, and where none answers, what to do."""
    from imray.client import AuthError, UnknownOutcomeError

    try:
        yield
    except UnknownOutcomeError:
        raise
    except UnavailableError as e:
        raise UnavailableError(f"{target.url}: {e}. Is it up? `imray up` starts one, --url names another") from e
    except AuthError as e:
        raise AuthError(f"{target.url}: {e}") from e


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters and direction marks are shown as escapes."""
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned text; numbers to the right, whole cells (nothing is cut where the output is no terminal)."""
    cells = [["" if value is None else printable(str(value)) for value in row] for row in rows]
    names = [printable(name) for name in columns]
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]
    right = [bool(cells) and all(re.fullmatch(r"-?[\d.]*", row[i]) for row in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in [names, *cells]
    )
