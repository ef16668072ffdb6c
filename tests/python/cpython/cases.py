"""CPython's own tests of `multiprocessing`, for the start method "dragon": of the interpreter that runs this."""

import test._test_multiprocessing

import dragon  # noqa: F401  (adds the start method)

test._test_multiprocessing.install_tests_in_module_dict(globals(), "dragon")
