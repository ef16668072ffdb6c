"""Runs cases of one class inside a runtime: ``python one_class.py REPORT LIMIT CLASS CASE…``.

One JSON object a line goes to the file REPORT: what starts, and how it ended. A case that takes longer than LIMIT seconds
ends this process, after the stacks of all threads went to standard error: whoever reads the report sees which one it was.
"""

import faulthandler
import json
import os
import sys
import unittest


class Reporter(unittest.TestResult):
    """Writes down what happens, and keeps each case within its time."""

    def __init__(self, report, limit):
        super().__init__()
        self._report = report
        self._limit = limit
        self._outcome = None
        self.arm()

    def arm(self):
        faulthandler.dump_traceback_later(self._limit, exit=True)

    def write(self, **entry):
        self._report.write(json.dumps(entry) + "\n")
        self._report.flush()

    def startTest(self, test):
        super().startTest(test)
        self.arm()
        self._outcome = "passed", ""
        self.write(start=test._testMethodName)

    def stopTest(self, test):
        super().stopTest(test)
        self.arm()
        outcome, text = self._outcome
        self.write(end=test._testMethodName, outcome=outcome, text=text)

    def addError(self, test, err):
        super().addError(test, err)
        self._fail(test, err)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._fail(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._fail(test, err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        if not isinstance(test, unittest.TestCase):
            self.write(skipped=reason)
        elif self._outcome[0] != "failed":
            self._outcome = "skipped", reason

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._outcome = "failed", "succeeded, though it is expected to fail"

    def _fail(self, test, err):
        text = self._exc_info_to_string(err, test) if isinstance(test, unittest.TestCase) else repr(err[1])
        if isinstance(test, unittest.TestCase):
            self._outcome = "failed", text
        else:  # setUpClass, tearDownModule and their like
            import traceback

            self.write(around=test.description, text="".join(traceback.format_exception(*err)))


def main():
    report, limit, name, *methods = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import cases

    kind = getattr(cases, name)
    suite = unittest.TestSuite(map(kind, methods))
    with open(report, "a", encoding="utf-8") as stream:
        result = Reporter(stream, float(limit))
        suite.run(result)
        result.write(done=True)


if __name__ == "__main__":
    main()
