"""The command line. Owns how commands end: exit codes, and every error as one line that says what to do.

Exit codes: 0 all well, 1 a check found a violation, 2 an error, 130 Ctrl-C, 141 the reader of our output went away
(`imray tail ... | head`). Nothing heavy is imported before a command needs it, so that `imray --help` is instant.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence

from imray.core.errors import ImrayError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


def main() -> None:
    """The entry point of `imray`."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # they speak to developers; -W shows them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    import typer

    from imray.cli.app import app

    command = typer.main.get_command(app)
    try:
        code = command.main(args=list(arguments) or ["--help"], prog_name="imray", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except SystemExit:  # what typer makes of EPIPE, and of nothing else here
        return EXIT_PIPE
    except ImrayError as e:
        return _fail(str(e))
    except Exception as e:  # the last resort: a user is shown no traceback
        if os.environ.get("IMRAY_DEBUG"):
            raise
        return _fail(_usage(e) or f"{type(e).__name__}: {e} (IMRAY_DEBUG=1 shows where)")
    return code if isinstance(code, int) else 0


def _usage(error: Exception) -> str | None:
    """What typer says about wrong arguments (its exception classes are no public names)."""
    text = getattr(error, "format_message", None)
    if text is None:
        return None
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "imray"
    return f"{str(text()).rstrip('.')}: see `{path} --help`"


def _fail(text: str) -> int:
    from imray.cli.common import printable

    # much of it is others' text: names of files and people, what DuckDB says of a query, a server's answer
    print("imray:", printable(" ".join(text.split())), file=sys.stderr)
    return EXIT_ERROR
