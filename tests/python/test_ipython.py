"""What is typed into IPython, or is in its own kind of file, which is not Python."""

import os

import pytest
from programs import run

TYPED = """
import dragon, multiprocessing, warnings
multiprocessing.set_start_method("dragon")
def square(n):
    return n * n
def put(queue):
    queue.put("put")
pool = multiprocessing.Pool(2)
print(pool.map(square, range(3)), pool.map(lambda n: n + 1, range(3)))
queue = multiprocessing.Queue()
process = multiprocessing.Process(target=put, args=(queue,))
process.start()
print(queue.get())
process.join()
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2) as executor:
    print(list(executor.map(square, range(3))))
"""
OUTPUT = ["[0, 1, 4] [1, 2, 3]", "put", "[0, 1, 4]"]


@pytest.fixture
def ipython(packages, dragon_command, tmp_path):
    """Runs IPython as the head of two nodes, with these words; what it prints."""
    paths = [packages(name)["PYTHONPATH"] for name in ("IPython", "cloudpickle")]
    env = {"PYTHONPATH": os.pathsep.join(paths), "IPYTHONDIR": str(tmp_path / "ipython"), "NO_COLOR": "1"}

    def ipython(*words):
        ended = run(dragon_command, ["python", "-m", "IPython", "--no-banner", *words], nodes=2, env=env)
        assert ended.code == 0, ended.text()
        return ended.out.splitlines()

    return ipython


def test_typed(ipython):
    assert ipython("-c", TYPED) == OUTPUT


def test_file_of_ipython(ipython, program):
    assert ipython(program(TYPED + "said = !echo shell\nprint(said[0])\n", "typed.ipy")) == [*OUTPUT, "shell"]


def test_run_of_a_file_between(ipython, program):
    file = program("import dragon, multiprocessing\nif __name__ == '__main__':\n    print(multiprocessing.Pool(1).map(abs, [-1]))\n")
    lines = ipython("-c", TYPED + f"%run {file}\nprint(pool.map(lambda n: square(n) + 1, range(3)))\n")
    assert lines == [*OUTPUT, "[1]", "[1, 2, 5]"]
