"""A local Ray cluster that is of this user alone: a token for its ports, a closed folder for its sockets and logs.

Whoever can speak to a Ray process runs code in it, as its owner. Its ports on loopback are open to every user of the
machine, and the folder that Ray makes by default is writable by all of them.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from functools import partial
from pathlib import Path

import ray

# private: Ray reads the variables for this once, at import, and has no public way to read them again, or to ask
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from imray.core.errors import UnavailableError

_FOLDER_LENGTH_MAX = 32
"""Ray's names behind it take up to 68 characters, and the path of a socket has at most 107."""


def prepare(token_file: Path | None) -> Path:
    """Set this process, and all that Ray starts from it, to token mode; the folder to start Ray in.

    `token_file` holds the token, readable by us alone, and must stay as long as the cluster runs: each new process
    reads it. None: a token is made for this cluster alone. What the environment says of tokens is for clusters that
    are joined, not for this one."""
    folder = _make_folder()
    atexit.register(partial(_remove, folder))
    if token_file is None:
        token_file = folder / "token"
        with os.fdopen(os.open(token_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    os.environ.pop("RAY_AUTH_TOKEN", None)  # it would go before the file
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    # asked of Ray, not assumed: a release that reads other variables would leave the ports open
    if not is_token_auth_enabled():
        raise UnavailableError("this version of Ray does not ask for a token: install the one that imray is pinned to")
    inner = folder / "ray"  # Ray opens the folder that it is given to everybody; nobody gets there
    inner.mkdir()
    return inner


def _make_folder() -> Path:
    """A folder of our own with a name that nobody can have taken; short, whatever TMPDIR says."""
    folder = Path(tempfile.mkdtemp(prefix="imray-"))
    if len(str(folder)) > _FOLDER_LENGTH_MAX:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="imray-", dir="/tmp"))
    return folder


def _remove(folder: Path) -> None:
    """At the end of this process. Ray first: its own way to end comes after this one, and needs the folder."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
