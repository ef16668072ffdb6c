"""Starts programs under `dragon` and collects what they do."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).parents[2] / "examples"
BENCHES = Path(__file__).parents[2] / "benches/python"

# The environment of a program outside of any runtime or job. Unbuffered, it would write its lines in pieces, and other
# processes would write between them.
INSIDE_ONLY = ("DRAGON_RUNTIME", "SLURM_JOB_ID", "PBS_JOBID", "PYTHONUNBUFFERED")
OUTSIDE = {name: value for name, value in os.environ.items() if name not in INSIDE_ONLY}


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str

    def text(self):
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def run(dragon, program, *, nodes=1, seconds=60, cwd=None, env=None):
    """`dragon PROGRAM…`; the word "python" stands for this interpreter. Killed, and a failure, after the given time."""
    where = ["--nodes", str(nodes), "--local-nodes"] if nodes > 1 else []
    words = [sys.executable if word == "python" else str(word) for word in program]
    return run_plain([dragon, *where, *words], seconds=seconds, cwd=cwd, env=env)


def run_plain(command, *, seconds=60, cwd=None, env=None):
    """Runs a command without a runtime around it."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=OUTSIDE | (env or {}),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        err += f"\n[killed by the test after {seconds} s]".encode()
    return Ended(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
