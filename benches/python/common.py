"""What the benchmark programs share: options, the start method, the line that they print.

Each program runs unchanged under three start methods: `fork` and `forkserver` of the standard library, and `dragon`,
ours or upstream's, whichever launcher started it. It prints one JSON object with a value for each run.
"""

import argparse
import json
import multiprocessing
import time


def options(runs):
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=["dragon", "fork", "forkserver"], default="dragon")
    parser.add_argument("--runs", type=int, default=runs, help="how many values to measure")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f"--runs {args.runs}: at least 1")
    if args.method == "dragon":
        import dragon  # noqa: F401 (registers the start method)
    multiprocessing.set_start_method(args.method)
    return args


def timed(operation, runs, per, scale):
    """One value for each run of `operation`, which does its work `per` times; the first run warms up and is dropped."""
    values = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        operation()
        values.append((time.perf_counter() - start) / per * scale)
    return values[1:]


def report(values, unit, note=""):
    print(json.dumps({"values": values, "unit": unit, "note": note}), flush=True)
