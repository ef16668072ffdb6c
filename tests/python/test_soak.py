"""Many processes, as many as an ordinary run of tests has time for; `soak.py` says how to have more."""

from pathlib import Path

from programs import run


def test_many_processes_lose_nothing_and_leave_nothing(dragon_command):
    program = Path(__file__).with_name("soak.py")
    ended = run(dragon_command, ["python", program, 1000, 200, 20], seconds=240)
    assert ended.code == 0, ended.text()
