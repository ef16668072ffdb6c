"""What the benchmark programs share: options, the start method, the line that they print.

Each program is one scenario and runs unchanged under every start method: `fork`, `forkserver` and `spawn` of the standard
library, and `dragon`, ours or upstream's, whichever launcher started it. It prints one JSON object with a value for each run.
"""

import argparse
import json
import multiprocessing
import time


def options(runs, **more):
    """The options of the command line: `--runs`, and each of `more`, whose value is its default. Sets the start method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=["dragon", "fork", "forkserver", "spawn"], default="dragon")
    for name, default in {"runs": runs, **more}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f"--runs {args.runs}: at least 1")
    if args.method == "dragon":
        import dragon  # noqa: F401 (registers the start method)
    multiprocessing.set_start_method(args.method)
    return args


def timed(operation, runs, per, scale):
    """One value for each run of `operation`, which does its work `per` times."""
    values = []
    for _ in range(runs):
        start = time.perf_counter()
        operation()
        values.append((time.perf_counter() - start) / per * scale)
    return values


def warmed_up(operation, runs, per, scale):
    """The same after a run that is dropped."""
    return timed(operation, runs + 1, per, scale)[1:]


def report(values, unit, note=""):
    print(json.dumps({"values": values, "unit": unit, "note": note}), flush=True)


def skip(why):
    """Ends the program: it cannot measure here."""
    print(json.dumps({"skipped": why}), flush=True)
    raise SystemExit
