"""Runs each file of `inside/` in a runtime of one node and in one of three."""

from pathlib import Path

import pytest
from programs import run

FILES = sorted(Path(__file__).parent.joinpath("inside").glob("test_*.py"))


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_inside(dragon_command, file, nodes):
    command = ["python", "-m", "pytest", "-q", "-ra", "--color=no", "-o", "faulthandler_timeout=60", str(file)]
    ended = run(dragon_command, command, nodes=nodes, seconds=240)
    assert ended.code == 0, ended.text()
