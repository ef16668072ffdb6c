"""What passes between processes goes through no system call on its node: seen by strace.

The same program under the standard library's "spawn" shows that each of these would be seen.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import run_plain
from traced import MARK

PROGRAM = Path(__file__).with_name("traced.py")
CALLS = "%file,%process,socket,connect,bind,sendto,sendmsg,sendmmsg,write,writev,pwrite64"


def why_not():
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else None


pytestmark = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))


def strace(trace):
    return ["strace", "-f", "-qq", "-s", str(2 * len(MARK)), "-e", f"trace={CALLS}", "-o", trace]


def passed_by_the_kernel(lines):
    """What a runtime does not need for passing objects, by kind; the lines of the trace that show it."""
    kinds = {
        "semaphores and shared memory by name": lambda line: "/dev/shm" in line,
        "sockets of others than the daemon": lambda line: "sun_path=" in line and 'sun_path=@"dragon/' not in line,
        "objects": lambda line: MARK.decode() in line,
    }
    return {kind: found for kind, shows in kinds.items() if (found := list(filter(shows, lines)))}


def test_nothing_passes_by_the_kernel_on_a_node(dragon_command, tmp_path):
    trace = tmp_path / "trace"
    # The command, the daemon, the warm interpreter and all workers.
    ended = run_plain([*strace(trace), dragon_command, sys.executable, PROGRAM, "dragon"], seconds=120)
    assert ended.code == 0, ended.text()
    lines = trace.read_text(errors="replace").splitlines()
    assert passed_by_the_kernel(lines) == {}
    # There is one worker for each that the program started, the warm interpreter of this program, and none that keeps
    # objects for others.
    forked = [line for line in lines if re.search(r"clone\(.*CLONE_PARENT\|", line)]
    assert len(forked) == int(ended.out) + 1, forked


def test_nothing_passes_by_the_head_s_kernel_when_all_workers_are_on_another_node(dragon_command, tmp_path):
    trace = tmp_path / "trace"
    command = [dragon_command, "--nodes", "2", "--local-nodes", *strace(trace), sys.executable, PROGRAM, "dragon"]
    ended = run_plain(command, seconds=120, env={"DRAGON_PLACEMENT": "remote"})
    assert ended.code == 0, ended.text()
    lines = trace.read_text(errors="replace").splitlines()
    assert passed_by_the_kernel(lines) == {}
    # What goes to the other node is sent by the agents: the head has no connection but that to its daemon.
    assert len([line for line in lines if re.search(r" connect\(", line)]) == 1


def test_it_would_be_seen(tmp_path):
    trace = tmp_path / "trace"
    ended = run_plain([*strace(trace), sys.executable, PROGRAM, "spawn"], seconds=120)
    assert ended.code == 0, ended.text()
    found = passed_by_the_kernel(trace.read_text(errors="replace").splitlines())
    assert found.keys() >= {"semaphores and shared memory by name", "objects"}
