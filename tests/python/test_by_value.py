"""What no other process can import travels by value, where cloudpickle is installed; else the error says so."""

import sys

import pytest
from programs import run, run_plain

LOCALS = """
import dragon, multiprocessing
if __name__ == "__main__":
    multiprocessing.set_start_method("dragon")
    queue = multiprocessing.Queue()
    added = 5
    class Local:
        number = 3
    process = multiprocessing.Process(target=lambda: queue.put((added, Local())))
    process.start()
    got, local = queue.get()
    process.join()
    with multiprocessing.Pool(2) as pool:
        print(got, type(local) is Local, pool.map(lambda n: n + added, range(3)), pool.apply(lambda: lambda: 7)())
"""

TYPED = """
import dragon, multiprocessing
multiprocessing.set_start_method("dragon")
class Square:
    def __init__(self, side):
        self.side = side
def square(side):
    return Square(side)
pool = multiprocessing.Pool(2)
squares = pool.map(square, range(3))
print([isinstance(one, Square) and one.side for one in squares])
pool.close()
"""


@pytest.mark.parametrize("nodes", [1, 2])
def test_functions_and_classes_within_functions(program, dragon_command, packages, nodes):
    ended = run(dragon_command, [program(LOCALS)], nodes=nodes, env=packages("cloudpickle"))
    assert ended.code == 0, ended.text()
    assert ended.out == "5 True [5, 6, 7] 7\n", ended.text()


def test_what_is_typed_at_a_prompt(packages):
    ended = run_plain([sys.executable, "-c", TYPED], env=packages("cloudpickle"))
    assert ended.code == 0, ended.text()
    assert ended.out == "[0, 1, 2]\n", ended.text()


CHANGED = """
import dragon, multiprocessing
multiprocessing.set_start_method("dragon")
factor = 2
def times(n):
    return n * factor
with multiprocessing.Pool(2) as pool:
    first = pool.map(times, range(3), chunksize=1)
    factor = 3
    print(first, pool.map(times, range(3), chunksize=1), pool.apply(times, (1,)))
"""


def test_each_job_has_its_function_as_it_is_then(packages):
    ended = run_plain([sys.executable, "-c", CHANGED], env=packages("cloudpickle"))
    assert ended.code == 0, ended.text()
    assert ended.out == "[0, 2, 4] [0, 3, 6] 3\n", ended.text()


def test_without_cloudpickle_the_error_says_what_to_do(program, dragon_command):
    ended = run(dragon_command, [program(LOCALS)])
    assert ended.code == 1, ended.text()
    assert "PicklingError" in ended.err and "cloudpickle" in ended.err, ended.text()
