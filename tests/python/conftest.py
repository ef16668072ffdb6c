"""Where the tests run.

`pytest tests/python` without a runtime runs the tests of this folder: they start `dragon` themselves, and one of them runs
the files in `inside/` under it, on one node and on three. `dragon python -m pytest tests/python` runs `inside/` directly.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IN_RUNTIME = "DRAGON_RUNTIME" in os.environ

collect_ignore_glob = ["test_*.py"] if IN_RUNTIME else ["inside/*"]


@pytest.fixture(scope="session")
def dragon_command():
    """Path of the `dragon` command: the one beside this interpreter, or on PATH."""
    beside = Path(sys.executable).parent / "dragon"
    found = str(beside) if beside.exists() else shutil.which("dragon")
    assert found, f"no dragon command at {beside} or on PATH: build first (cargo xtask build)"
    return found


@pytest.fixture
def program(tmp_path):
    """Writes a program; the code goes below `if __name__ == "__main__"` unless it has a main of its own."""

    def write(text, name="program.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def packages():
    """The environment in which a package is found that only some tests want to see."""

    def packages(name):
        folder = Path(os.environ.get("DRAGON_TEST_PACKAGES", "")) / name
        if not (folder / name).is_dir():
            pytest.skip(f"{name} is not in DRAGON_TEST_PACKAGES; cargo xtask test python puts it there")
        return {"PYTHONPATH": str(folder)}

    return packages
