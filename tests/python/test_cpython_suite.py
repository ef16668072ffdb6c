"""How the run of CPython's tests counts what it is told."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cpython"))
import suite  # noqa: E402

METHODS = ["test_a", "test_b", "test_c"]


def started(case):
    return {"start": case}


def ended(case, outcome="passed"):
    return {"end": case, "outcome": outcome, "text": ""}


def outcomes(entries, methods=METHODS):
    return [(outcome.case, outcome.how) for outcome in suite.read_report(entries, methods, "it was killed")]


def test_each_case_counts_once():
    entries = [started("test_a"), ended("test_a"), started("test_b"), ended("test_b", "failed")]
    entries += [started("test_c"), ended("test_c", "skipped"), {"done": True}]
    assert outcomes(entries) == [("test_a", "passed"), ("test_b", "failed"), ("test_c", "skipped")]


def test_a_case_that_hangs_fails_and_the_others_are_left_for_the_next_runtime():
    assert outcomes([started("test_a"), ended("test_a"), started("test_b")]) == [("test_a", "passed"), ("test_b", "failed")]


def test_a_class_that_cannot_be_set_up_fails_with_all_its_cases():
    entries = [{"around": "setUpClass (Some)", "text": "why"}, {"done": True}]
    assert outcomes(entries) == [(method, "failed") for method in METHODS]


def test_a_runtime_that_does_not_come_up_fails_with_all_cases():
    assert outcomes([]) == [(method, "failed") for method in METHODS]


@pytest.mark.parametrize("last", [{"around": "tearDownClass (Some)", "text": "why"}, None])
def test_a_failure_after_the_last_case_counts(last):
    entries = [started("test_a"), ended("test_a"), *([last, {"done": True}] if last else [])]
    assert outcomes(entries, ["test_a"]) == [("test_a", "passed"), ("tearDownClass", "failed")]


def test_an_exception_names_a_case_and_says_why(tmp_path):
    path = tmp_path / "exceptions.toml"
    path.write_text('[[exception]]\ncase = "A.test_*"\nreason = "why"\n[[exception]]\ncase = "B.test_a"\nreason = "x"\n')
    exceptions = suite.Exceptions(path)
    assert exceptions.reason("A.test_a") == "why"
    assert exceptions.reason("C.test_a") is None
    assert exceptions.unused() == ["B.test_a"]
