"""Runs CPython's own tests of `multiprocessing` under the start method "dragon", class by class.

    python tests/python/cpython/suite.py [--limit SECONDS] [--jobs N] [--logs FOLDER] [PATTERN…]

Each class runs in a runtime of its own (with DRAGON_PLACEMENT=remote: of two nodes, and every child is on the other one).
A case that hangs fails, and the rest of its class goes on in another runtime. The cases listed in `cpython-exceptions.toml`
are not run and count as skipped, as do those that the suite skips by itself. The last line has the totals.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import unittest
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
EXCEPTIONS = HERE.parent / "cpython-exceptions.toml"
#: What starting and ending a runtime may take, beyond the time of the cases.
AROUND = 60


class Outcome(NamedTuple):
    """How a case ended."""

    case: str
    how: str
    text: str


def main():
    # Who runs it in the background of a shell ignores this signal; the cases want to hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = parse_options()
    cases = collect(options.patterns)
    exceptions = Exceptions(EXCEPTIONS)
    logs = options.logs
    logs.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as runners:
        futures = {
            name: runners.submit(run_class, name, methods, exceptions, options.limit, logs / f"{name}.log")
            for name, methods in cases.items()
        }
        for name, future in futures.items():
            outcomes[name] = future.result()
            for case, how, text in outcomes[name]:
                if how == "failed":
                    print(f"FAILED {name}.{case}: {last_line(text)}", flush=True)
    print_table(outcomes)
    if not options.patterns:
        for pattern in exceptions.unused():
            print(f"FAILED {EXCEPTIONS.name}: {pattern} names no case of this Python")
    counts = [sum(o.how == how for all in outcomes.values() for o in all) for how in ("passed", "failed", "skipped")]
    if not options.patterns:
        counts[1] += len(exceptions.unused())
    print(f"what was printed, and the tracebacks: {logs}")
    print("{} passed, {} failed, {} skipped".format(*counts))
    sys.exit(counts[1] != 0)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=60, help="seconds that a case may take")
    parser.add_argument("--jobs", type=int, default=1, help="classes at a time")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()) / f"dragon-cpython-{os.getuid()}")
    parser.add_argument("patterns", nargs="*", help="CLASS.CASE, with * and ?")
    return parser.parse_args()


def collect(patterns):
    """The names of cases by class, in the suite's order."""
    sys.path.insert(0, str(HERE))
    import cases

    found = {}
    for name, kind in vars(cases).items():
        if isinstance(kind, type) and issubclass(kind, unittest.TestCase):
            methods = unittest.defaultTestLoader.getTestCaseNames(kind)
            wanted = [m for m in methods if not patterns or any(fnmatch.fnmatch(f"{name}.{m}", p) for p in patterns)]
            if wanted:
                found[name] = wanted
    return found


class Exceptions:
    """The cases that are not run, and why."""

    def __init__(self, path):
        with open(path, "rb") as file:
            entries = tomllib.load(file).get("exception", [])
        self._reasons = {entry["case"]: entry["reason"] for entry in entries if is_met(entry.get("since", "3"))}
        self._used = set()

    def reason(self, case):
        for pattern, reason in self._reasons.items():
            if fnmatch.fnmatch(case, pattern):
                self._used.add(pattern)
                return reason
        return None

    def unused(self):
        return sorted(self._reasons.keys() - self._used)


def is_met(version):
    return sys.version_info >= tuple(map(int, version.split(".")))


def run_class(name, methods, exceptions, limit, log):
    outcomes = []
    left = []
    for method in methods:
        reason = exceptions.reason(f"{name}.{method}")
        if reason is None:
            left.append(method)
        else:
            outcomes.append(Outcome(method, "skipped", reason))
    with open(log, "wb") as output, tempfile.TemporaryDirectory(prefix="dragon-cpython-") as folder:
        attempt = 0
        while left:
            attempt += 1
            report = Path(folder) / f"report-{attempt}"
            report.touch()
            how = run_cases(report, limit, name, left, output)
            entries = [json.loads(line) for line in report.read_text().splitlines()]
            new = read_report(entries, left, how)
            for outcome in new:
                output.write(f"\n==== {outcome.case}: {outcome.how}\n{outcome.text}\n".encode())
            outcomes += new
            ended = {outcome.case for outcome in new}
            left = [method for method in left if method not in ended]
    return outcomes


def run_cases(report, limit, name, methods, output):
    """One runtime with these cases; says how it ended."""
    beside = Path(sys.executable).parent / "dragon"
    nodes = ["--nodes", "2", "--local-nodes"] if os.environ.get("DRAGON_PLACEMENT") == "remote" else []
    program = [sys.executable, HERE / "one_class.py", report, str(limit), name, *methods]
    process = subprocess.Popen(
        [beside if beside.exists() else shutil.which("dragon"), *nodes, *program],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return f"the process ended with exit code {process.wait(limit * len(methods) + AROUND)}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "the runtime did not end and was killed"


def read_report(entries, methods, how):
    """At least one outcome, so that there is progress."""
    outcomes = []
    running = None
    done = False
    for entry in entries:
        if "start" in entry:
            running = entry["start"]
        elif "end" in entry:
            running = None
            outcomes.append(Outcome(entry["end"], entry["outcome"], entry["text"]))
        elif "around" in entry:
            # Without a class there are no cases; after the last case it is a failure of its own.
            ended = {outcome.case for outcome in outcomes}
            missing = [method for method in methods if method not in ended] or [entry["around"].split(" ")[0]]
            outcomes += [Outcome(method, "failed", entry["text"]) for method in missing]
        elif "skipped" in entry:
            outcomes += [Outcome(method, "skipped", entry["skipped"]) for method in methods]
        else:
            done = True
    if running is not None:
        outcomes.append(Outcome(running, "failed", f"it hangs, or ends its process: {how}"))
    elif not done:
        ended = {outcome.case for outcome in outcomes}
        missing = [method for method in methods if method not in ended] or ["tearDownClass"]
        if ended:
            # The end of one case hung: the cases after it have a chance without it.
            missing = missing[:1]
        outcomes += [Outcome(method, "failed", f"it hangs around the cases: {how}") for method in missing]
    return outcomes


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def print_table(outcomes):
    width = max(map(len, outcomes), default=0)
    print(f"{'class':{width}}  passed  failed  skipped")
    for name, all in outcomes.items():
        counts = [sum(o.how == how for o in all) for how in ("passed", "failed", "skipped")]
        print(f"{name:{width}}  {counts[0]:6}  {counts[1]:6}  {counts[2]:7}")


if __name__ == "__main__":
    main()
