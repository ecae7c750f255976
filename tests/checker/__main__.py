"""`python -m tests.checker EVENTS.jsonl ... [--json]`: 0 all holds, 1 violated, 2 malformed or nothing to check."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.checker.events import MalformedError
from tests.checker.invariants import check


def main(arguments: list[str]) -> int:
    """Run the checker over files."""
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="EVENTS.jsonl", help="one per client process")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        report = check(options.files)
    except (MalformedError, OSError) as e:
        print(f"checker: {e}", file=sys.stderr)
        return 2
    print(json.dumps(report.to_dict(), indent=2) if options.json else report.to_text())
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
