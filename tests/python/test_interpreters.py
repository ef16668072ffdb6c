"""What workers run in: the warm interpreter of their node, what it imports before it forks them, and when it does not."""

import pytest
from programs import run

pytestmark = pytest.mark.parametrize("nodes", [1, 2])

#: Two workers on each node; every import of the main module and every worker is a line.
WORKERS = """
import os, sys
print("import", __name__, os.getpid(), flush=True)
{above}
import dragon, multiprocessing
{top}
def work(place):
    {work}
    print("worker", os.getpid(), flush=True)

if __name__ == "__main__":
    multiprocessing.set_start_method("dragon")
    {main}
    workers = []
    for node in dragon.nodes():
        for place in range(2):
            workers.append(multiprocessing.Process(target=work, args=(place,)))
            with dragon.on_node(node.index):
                workers[-1].start()
    for worker in workers:
        worker.join()
    print("ended", *[worker.exitcode for worker in workers], flush=True)
"""


@pytest.fixture
def lines(program, dragon_command, nodes):
    """Runs workers; what was printed, as words by first word."""

    def lines(above="", top="", work="pass", main="pass", options=()):
        path = program(WORKERS.format(above=above, top=top, work=work, main=main))
        ended = run(dragon_command, ["python", *options, path], nodes=nodes)
        assert ended.code == 0, ended.text()
        by_first = {"text": ended.text()}
        for line in ended.out.splitlines():
            first, *rest = line.split()
            by_first.setdefault(first, []).append(rest)
        return by_first

    return lines


def imports(lines):
    """Processes that have imported the main module for workers."""
    return [pid for name, pid in lines["import"] if name == "__mp_main__"]


def assert_each_imports(lines, nodes):
    assert lines["ended"] == [["0"] * 2 * nodes], lines["text"]
    workers = [pid for (pid,) in lines["worker"]]
    assert len(workers) == 2 * nodes and set(workers) <= set(imports(lines)), lines["text"]


def test_a_node_imports_the_main_module_once(lines, nodes):
    got = lines()
    assert got["ended"] == [["0"] * 2 * nodes], got["text"]
    assert len(got["worker"]) == 2 * nodes
    assert len(imports(got)) == nodes, got["text"]


def test_workers_of_workers_come_from_the_same_interpreter(lines, nodes):
    got = lines(work="place < 2 and multiprocessing.Process(target=work, args=(2,)).start()")
    assert got["ended"] == [["0"] * 2 * nodes], got["text"]
    assert len(got["worker"]) == 4 * nodes
    assert len(imports(got)) == nodes, got["text"]


@pytest.mark.parametrize(
    "top",
    [
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "queue = multiprocessing.get_context('dragon').Queue()",
    ],
    ids=["thread", "object"],
)
def test_what_cannot_be_forked_each_worker_makes_itself(lines, nodes, top):
    assert_each_imports(lines(top=top), nodes)


def test_a_main_module_that_fails_says_so_in_each_worker(lines, nodes):
    got = lines(top="assert __name__ == '__main__', 'no worker'")
    assert got["ended"] == [["1"] * 2 * nodes], got["text"]
    assert got["text"].count("AssertionError: no worker") == 2 * nodes, got["text"]


def test_random_numbers_are_each_workers_own(lines, nodes):
    above = "import random, numpy"
    got = lines(above, work="print('random', random.random(), numpy.random.rand(), flush=True)")
    assert len(imports(got)) == nodes, got["text"]
    for numbers in zip(*got["random"]):
        assert len(set(numbers)) == 2 * nodes, got["text"]


def test_sums_of_many_threads_work_in_workers(lines, nodes):
    """Importing numpy starts threads, where there are CPUs for them; they do not keep the module from being imported once."""
    above = "import numpy; numpy.ones((300, 300)) @ numpy.ones((300, 300))"
    got = lines(above, work="print('sum', (numpy.ones((300, 300)) @ numpy.ones((300, 300)))[0, 0], flush=True)")
    assert got["sum"] == [["300.0"]] * 2 * nodes, got["text"]
    assert len(imports(got)) == nodes, got["text"]


def test_modules_are_imported_before_workers_are_forked(lines, nodes, tmp_path):
    (tmp_path / "heavy.py").write_text("import os\nprint('heavy', os.getpid(), flush=True)\n")
    main = "multiprocessing.set_forkserver_preload(['heavy', 'no_such_module'])"
    got = lines(work="import heavy", main=main)
    assert got["ended"] == [["0"] * 2 * nodes], got["text"]
    assert len(got["heavy"]) == nodes, got["text"]
    # The list says nothing of the main module.
    assert_each_imports(got, nodes)


def test_fresh_interpreters_on_request(lines, nodes):
    got = lines(work="print('fresh', '--worker' in sys.orig_argv)", main="multiprocessing.get_context().set_fresh_interpreters()")
    assert_each_imports(got, nodes)
    assert got["fresh"] == [["True"]] * 2 * nodes, got["text"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("collects", [False, True])
def test_garbage_is_collected_in_workers_as_the_program_says(lines, nodes, collects, fresh):
    says = "print('collects', gc.isenabled(), flush=True)"
    main = f"multiprocessing.get_context().set_fresh_interpreters({fresh})"
    above = f"import gc; {'' if collects else 'gc.disable(); '}{says}"
    got = lines(above=above, work=says, main=main)
    assert len(got["collects"]) == 1 + len(imports(got)) + 2 * nodes, got["text"]
    assert all(said == [str(collects)] for said in got["collects"]), got["text"]


POOL = """
import sys
import dragon, multiprocessing
def has_pool(n):
    return "multiprocessing.pool" in sys.modules

if __name__ == "__main__":
    context = multiprocessing.get_context("dragon")
    context.set_fresh_interpreters()
    with context.Pool(2) as pool:
        print(*set(pool.map(has_pool, range(4)) + pool.starmap(has_pool, [(n,) for n in range(4)])))
"""


def test_a_worker_of_a_pool_does_without_the_standard_one(program, dragon_command, nodes):
    ended = run(dragon_command, ["python", program(POOL)], nodes=nodes)
    assert ended.out.split() == ["False"], ended.text()


def test_options_of_the_interpreter_are_the_workers_too(lines, nodes):
    got = lines(work="print('flags', *sys.flags, sys._xoptions, sys.warnoptions, flush=True)", main="work(0)", options=["-O", "-X", "dev"])
    assert len(got["flags"]) == 1 + 2 * nodes
    assert all(flags == got["flags"][0] for flags in got["flags"]), got["text"]


SAYS_A_NUMBER = """
import dragon, multiprocessing
NUMBER = {}
def say():
    print(NUMBER, flush=True)

if __name__ == "__main__":
    multiprocessing.set_start_method("dragon")
    worker = multiprocessing.Process(target=say)
    worker.start()
    worker.join()
"""


def test_a_program_that_was_changed_is_imported_anew_in_the_same_runtime(program, dragon_command, nodes):
    for number in range(2):
        program(SAYS_A_NUMBER.format(number), f"{number}.py")
    changes = program(
        "import os, subprocess, sys\n"
        "for number in '010':\n"
        "    os.rename(number + '.py', 'same.py')\n"
        "    subprocess.run([sys.executable, 'same.py'], check=True)\n"
        "    os.rename('same.py', number + '.py')\n"
    )
    ended = run(dragon_command, ["python", changes], nodes=nodes, cwd=changes.parent)
    assert (ended.code, sorted(ended.out.split())) == (0, ["0", "0", "1"]), ended.text()


def test_the_interpreter_that_was_warmed_ahead_serves_where_variables_are_options(program, dragon_command, nodes):
    path = program(INTERPRETERS)
    options = dict.fromkeys(["PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE", "PYTHONSAFEPATH"], "1")
    ended = run(dragon_command, [path], nodes=nodes, env=options)
    assert ended.code == 0, ended.text()
    assert ended.out.split() == ["1"] * nodes, ended.text()


#: How many different command lines the warm interpreters of each node have: one forks itself for a program.
INTERPRETERS = """
import os
from pathlib import Path
import dragon, multiprocessing

def count():
    children = Path(f"/proc/{os.getppid()}/task").glob("*/children")  # of each thread
    pids = " ".join(thread.read_text() for thread in children).split()
    lines = {Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    print(sum(b"dragon._zygote" in line for line in lines), flush=True)

if __name__ == "__main__":
    multiprocessing.set_start_method("dragon")
    for node in dragon.nodes():
        with dragon.on_node(node.index):
            worker = multiprocessing.Process(target=count)
            worker.start()
        worker.join()
"""


EXHAUSTED = """
import errno, os, resource
import dragon, multiprocessing
opened = []
def use_up():
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    while True:
        opened.append(os.open(os.devnull, os.O_RDONLY))

if __name__ == "__main__":
    context = multiprocessing.get_context("dragon")
    context.set_fresh_interpreters()
    with context.Pool(1) as pool:
        try:
            pool.apply(use_up)
        except OSError as error:
            print(errno.errorcode[error.errno])
"""


def test_a_task_that_used_up_what_imports_need_fails_with_its_own_error(program, dragon_command, nodes):
    ended = run(dragon_command, ["python", program(EXHAUSTED)], nodes=nodes)
    assert (ended.code, ended.out) == (0, "EMFILE\n"), ended.text()
