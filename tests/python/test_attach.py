"""An interpreter that was started outside of a runtime enters one that is running."""

import contextlib
import os
import subprocess
import sys

import pytest
from programs import OUTSIDE, run_plain


@contextlib.contextmanager
def runtime(dragon_command):
    """A runtime whose head waits for the end of its input; gives the name of its job."""
    command = [dragon_command, "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=OUTSIDE) as launcher:
        assert launcher.stdout.readline() == "ready\n"
        yield str(launcher.pid)
        launcher.communicate("\n")
        assert launcher.returncode == 0


@pytest.fixture
def attach(tmp_path):
    """Runs an interpreter outside of any runtime that attaches, with these arguments, and then looks around."""
    path = tmp_path / "program.py"

    def attach(arguments="", **variables):
        path.write_text(
            "import dragon, os\n"
            "if __name__ == '__main__':\n"
            "    try:\n"
            f"        dragon.attach({arguments})\n"
            "        print(os.environ['DRAGON_RUNTIME'].split('/')[2], dragon.node().index)\n"
            "    except dragon.DragonError as error:\n"
            "        print(type(error).__name__, error)\n"
        )
        return run_plain([sys.executable, path], env=variables)

    return attach


def test_the_only_runtime_is_the_one(dragon_command, attach):
    with runtime(dragon_command) as job:
        ended = attach()
        assert ended.out == f"{job} 0\n", ended.text()


def test_of_two_the_named_one(dragon_command, attach):
    with runtime(dragon_command) as one, runtime(dragon_command) as other:
        for job in (one, other):
            ended = attach(repr(job))
            assert ended.out == f"{job} 0\n", ended.text()
        ended = attach()
        assert ended.out.startswith("NoRuntimeError 2 runtimes"), ended.text()
        assert one in ended.out and other in ended.out, ended.text()
        ended = attach("1")
        assert "no runtime of yours on this machine is of job 1;" in ended.out, ended.text()


def test_without_one_the_error_says_what_to_type(attach):
    ended = attach()
    assert ended.out.startswith("NoRuntimeError no runtime of yours runs on this machine"), ended.text()
    assert "dragon PROGRAM" in ended.out


def test_one_that_has_ended_is_named(attach):
    name = f"dragon/{os.getuid()}/4711/0/00ff"
    ended = attach(DRAGON_RUNTIME=name)
    assert name in ended.out and "has ended" in ended.out, ended.text()


@pytest.mark.parametrize(
    ("job", "belongs"),
    [
        ("12", True),
        ("1", False),
        ("12.pbs", True),
        ("12.pbs.site.org", True),
        ("12.other.site.org", False),
        ("12.pbs.77", True),
        ("12.pbs.78", False),
    ],
)
def test_runtimes_belong_to_jobs(job, belongs):
    from dragon._attach import _is_job

    assert _is_job("12.pbs.77", job) is belongs
