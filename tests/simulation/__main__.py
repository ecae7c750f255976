"""`python -m tests.simulation --seed N [--trace]` replays a seed; `--schedules M --from S` runs many."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.simulation.run import complaint, run


def main(arguments: list[str]) -> int:
    """Run seeds; 1 where one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--trace", action="store_true", help="print what happened")
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--stop-after", type=int, default=5, help="failures")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        outcome = run(options.seed, keep_trace=True)
        if options.trace:
            print("\n".join(outcome.lines))
        if outcome.error is not None:
            traceback.print_exception(outcome.error)
            print(complaint(outcome))
        print(f"seed {outcome.seed}: trace {outcome.digest}, {outcome.events} events")
        return outcome.error is not None
    began, failed, events, done = time.perf_counter(), 0, 0, 0
    for seed in range(options.first, options.first + options.schedules):
        outcome = run(seed)
        events, done = events + outcome.events, done + 1
        if outcome.error is not None:
            failed += 1
            print(complaint(outcome), flush=True)
            if failed >= options.stop_after:
                break
    seconds = time.perf_counter() - began
    rate = f"{done / seconds:.0f} a second, {events // done} events each"
    print(f"{done} schedules, {failed} failed, {seconds:.1f} s: {rate}")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
