"""`python -m tests.checker EVENTS.jsonl ... [--json]`: exit 1 on a violation, 2 where there is nothing to check."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.checker.events import MalformedError
from tests.checker.invariants import check


def main(arguments: list[str]) -> int:
    """Run the checker over files."""
    paths = [Path(a) for a in arguments if a != "--json"]
    try:
        report = check(paths)
    except (MalformedError, OSError) as e:
        print(f"checker: {e}", file=sys.stderr)
        return 2
    print(json.dumps(report.to_dict()) if "--json" in arguments else report.to_text())
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
