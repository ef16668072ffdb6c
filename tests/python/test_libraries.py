"""Libraries that sit on `multiprocessing`, over two nodes."""

import pytest
from programs import run

HEAD = """
import dragon, multiprocessing as mp, os

def square(x):
    return x * x

def node(_):
    return dragon.node().index

def die(_):
    os._exit(3)

def begin(value):
    global given
    given = value

def what_was_given(_):
    return given

if __name__ == "__main__":
    mp.set_start_method("dragon")
"""


@pytest.fixture
def says(program, dragon_command):
    """Runs lines in a head; what they print."""

    def says(*lines, env=None):
        text = HEAD + "".join(f"    {line}\n" for line in lines)
        ended = run(dragon_command, [program(text)], nodes=2, env=env)
        assert ended.code == 0, ended.text()
        return ended.out.splitlines()

    return says


EXECUTOR = "from concurrent.futures import ProcessPoolExecutor, as_completed"


def test_executor(says):
    assert says(
        EXECUTOR,
        "with ProcessPoolExecutor(4, mp_context=mp.get_context('dragon'), initializer=begin, initargs=(7,)) as executor:",
        "    print(list(executor.map(square, range(6))), list(executor.map(square, range(6), chunksize=3)))",
        "    print([future.result() for future in as_completed([executor.submit(what_was_given, i) for i in range(3)])])",
        "    failed = executor.submit(divmod, 1, 0)",
        "    print(type(failed.exception()).__name__)",
    ) == ["[0, 1, 4, 9, 16, 25] [0, 1, 4, 9, 16, 25]", "[7, 7, 7]", "ZeroDivisionError"]


def test_executor_with_what_cannot_be_imported(says, packages):
    lines = says(
        EXECUTOR,
        "import threading",
        "with ProcessPoolExecutor(2) as executor:",
        "    added = 5",
        "    print(list(executor.map(lambda n: n + added, range(3))))",
        "    print(type(executor.submit(square, threading.Lock()).exception()).__name__, executor.submit(square, 3).result())",
        env=packages("cloudpickle"),
    )
    assert lines == ["[5, 6, 7]", "TypeError 9"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_executor_of_another_start_method(says, method):
    lines = says(
        EXECUTOR,
        f"with ProcessPoolExecutor(2, mp_context=mp.get_context('{method}')) as executor:",
        "    print(list(executor.map(square, range(3))), executor.submit(os.getppid).result() == os.getpid())",
    )
    assert lines == ["[0, 1, 4] True"]


def test_executor_whose_worker_dies(says):
    lines = says(
        EXECUTOR,
        "with ProcessPoolExecutor(2) as executor:",
        "    print(type(executor.submit(die, 1).exception()).__name__)",
    )
    assert lines == ["BrokenProcessPool"]


def test_executor_on_the_other_node(says):
    lines = says(
        EXECUTOR,
        "with dragon.on_node(1), ProcessPoolExecutor(1) as executor:",
        "    print(executor.submit(node, 0).result())",
    )
    assert lines == ["1"]


def test_joblib(says, packages):
    assert says(
        "from joblib import Parallel, delayed",
        "print(Parallel(n_jobs=2, backend='multiprocessing')(delayed(square)(i) for i in range(5)))",
        env=packages("joblib"),
    ) == ["[0, 1, 4, 9, 16]"]


def test_tqdm(says, packages):
    lines = says(
        "from tqdm.contrib.concurrent import process_map",
        "print(process_map(square, range(5), max_workers=2, chunksize=1, disable=True))",
        env=packages("tqdm"),
    )
    assert lines == ["[0, 1, 4, 9, 16]"]
