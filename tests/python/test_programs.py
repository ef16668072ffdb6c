"""Whole programs: with and without a runtime, their exit codes, and what is left of them."""

import json
import os
import signal
import subprocess
import sys

import pytest
from programs import BENCHES, OUTSIDE, run, run_plain


def test_import_needs_no_runtime(program):
    path = program("import dragon, multiprocessing\nprint(dragon.__version__, multiprocessing.get_all_start_methods())\n")
    ended = run_plain([sys.executable, path])
    assert ended.code == 0, ended.text()
    assert "'dragon'" in ended.out


USES_WORKERS = (
    "import dragon, multiprocessing\n"
    "def work(n):\n"
    "    print('worker', flush=True)\n"
    "    return n * n\n"
    "if __name__ == '__main__':\n"
    "    multiprocessing.set_start_method('dragon')\n"
    "    queue = multiprocessing.Queue()\n"
    "    queue.put('hello')\n"
    "    with multiprocessing.Pool(2) as pool:\n"
    "        print(queue.get(), pool.map(work, range(4)), flush=True)\n"
)


def sockets_of(pid):
    with open("/proc/net/unix", encoding="ascii", errors="replace") as sockets:
        return [line for line in sockets if line.split()[-1].startswith("@dragon/") and f"/{pid}/" in line]


def test_plain_python_starts_a_runtime_and_leaves_nothing(program):
    path = program(USES_WORKERS + "    import os\n    print(os.getpid())\n")
    ended = run_plain([sys.executable, path])
    assert ended.code == 0, ended.text()
    lines = ended.out.splitlines()
    assert lines.count("worker") == 4, ended.text()
    assert "hello [0, 1, 4, 9]" in lines, ended.text()
    assert sockets_of(lines[-1]) == []


def test_a_program_from_standard_input_and_one_word_programs_start_a_runtime():
    text = "import dragon, multiprocessing as mp; mp.set_start_method('dragon'); q = mp.Queue(); q.put(7)\n"
    # A function of a module: what such programs define themselves is in no file that workers could read.
    text += "p = mp.Process(target=print, args=('worker',)); p.start(); p.join(); print(q.get(), p.exitcode)\n"
    for words in [["-c", text], ["-"], ["-i"]]:
        ended = subprocess.run(
            [sys.executable, *words],
            input="" if words[0] == "-c" else text,
            env=OUTSIDE,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended
        # What a worker writes may come after the news of its end.
        assert sorted(ended.stdout.split()) == ["0", "7", "worker"], ended


@pytest.mark.parametrize("change", ["sys.stdout = None", "sys.stderr = None", "sys.stdout.close()"])
def test_a_worker_that_has_no_standard_streams_any_more_ends_in_silence(program, change):
    path = program(
        "import dragon, multiprocessing, sys\n"
        "def work():\n"
        f"    {change}\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    worker = multiprocessing.Process(target=work)\n"
        "    worker.start()\n"
        "    worker.join()\n"
        "    print(worker.exitcode)\n"
    )
    ended = run_plain([sys.executable, path])
    assert ended == (0, "0\n", ""), ended.text()


def test_a_killed_program_takes_its_runtime_along(program):
    path = program(
        "import dragon, multiprocessing, os, time\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    worker = multiprocessing.Process(target=time.sleep, args=(1000,))\n"
        "    worker.start()\n"
        "    print(worker.pid, flush=True)\n"
        "    worker.join()\n"
    )
    process = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    # The daemon and the worker have its output too: the end of file means that they are gone.
    assert process.stdout.read() == ""
    process.wait()
    assert sockets_of(process.pid) == []
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_runtime_stays_for_a_forked_process_that_uses_it(program):
    path = program(
        "import dragon, multiprocessing, os\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    queue = multiprocessing.Queue()\n"
        "    read, write = os.pipe()\n"
        "    if os.fork() == 0:\n"
        "        queue.put('forked')\n"
        "        os.write(write, b'x')\n"
        "        os.close(write)\n"
        "        while os.getppid() != 1 and open(f'/proc/{os.getppid()}/comm').read().startswith('python'):\n"
        "            import time; time.sleep(0.01)\n"
        "        print(queue.get(), flush=True)\n"
        "        os._exit(0)\n"
        "    os.read(read, 1)\n"
    )
    ended = run_plain([sys.executable, path])
    assert (ended.code, ended.out) == (0, "forked\n"), ended.text()


def test_without_a_daemon_the_error_says_what_to_type(program):
    path = program(
        "import dragon, multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    try:\n"
        "        multiprocessing.Queue()\n"
        "    except dragon.NoRuntimeError as error:\n"
        "        print(error.code, error)\n"
    )
    ended = run_plain([sys.executable, path], env={"DRAGON_DAEMON": "/no/such/daemon"})
    assert ended.code == 0, ended.text()
    assert ended.out.startswith("16 "), ended.text()
    assert "/no/such/daemon" in ended.out and "dragon prog.py" in ended.out, ended.text()


def test_other_start_methods_are_untouched(program):
    path = program(
        "import multiprocessing\n"
        "import dragon\n"
        "if __name__ == '__main__':\n"
        "    assert multiprocessing.cpu_count() == __import__('os').cpu_count()\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    queue = multiprocessing.Queue()\n"
        "    assert type(queue).__module__ == 'multiprocessing.queues', type(queue)\n"
        "    with multiprocessing.Pool(2) as pool:\n"
        "        assert pool.map(abs, [-1, 2]) == [1, 2]\n"
        "    process = multiprocessing.Process(target=queue.put, args=('hello',))\n"
        "    process.start()\n"
        "    print(queue.get())\n"
        "    process.join()\n"
    )
    ended = run_plain([sys.executable, path])
    assert (ended.code, ended.out) == (0, "hello\n"), ended.text()


@pytest.mark.parametrize("method", ["spawn", "dragon"])
@pytest.mark.parametrize("closes", [True, False])
def test_shared_memory_is_silent_at_the_end_of_the_interpreter(program, method, closes):
    path = program(
        "import dragon, multiprocessing\n"
        "from multiprocessing import shared_memory\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method({method!r})\n"
        "    memory = shared_memory.SharedMemory(create=True, size=10)\n"
        "    print(bytes(memory.buf)[:10])\n"
        "    memory.unlink()\n" + "    memory.close()\n" * closes
    )
    ended = run_plain([sys.executable, path])
    assert (ended.code, ended.out, ended.err) == (0, f"{bytes(10)}\n", ""), ended.text()


def test_names_imported_before_dragon_follow_the_start_method(dragon_command, program):
    path = program(
        "from multiprocessing import Pool, Queue, Process, cpu_count\n"
        "import multiprocessing\n"
        "import dragon\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    assert cpu_count() == sum(node.cpus for node in dragon.nodes())\n"
        "    queue = Queue()\n"
        "    process = Process(target=queue.put, args=('hello',))\n"
        "    process.start()\n"
        "    print(queue.get(), type(queue).__module__)\n"
        "    process.join()\n"
        "    with Pool(2) as pool:\n"
        "        print(pool.map(abs, [-1, 2]), type(pool).__module__)\n"
    )
    ended = run(dragon_command, [path], nodes=2)
    assert ended.code == 0, ended.text()
    assert ended.out == "hello dragon.mp.queues\n[1, 2] dragon.mp.pool\n", ended.text()


def test_python_processes_print_where_the_program_prints(dragon_command, program):
    path = program(
        "import dragon, multiprocessing, sys\n"
        "def child(n):\n"
        "    print('out', n)\n"
        "    print('err', n, file=sys.stderr)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    for n in range(3):\n"
        "        process = multiprocessing.Process(target=child, args=(n,))\n"
        "        with dragon.on_node(n % len(dragon.nodes())):\n"
        "            process.start()\n"
        "        process.join()\n"
    )
    ended = run(dragon_command, [path], nodes=3)
    assert ended.code == 0, ended.text()
    assert sorted(ended.out.split("\n")) == ["", "out 0", "out 1", "out 2"], ended.text()
    assert {"err 0", "err 1", "err 2"} <= set(ended.err.split("\n")), ended.text()


def test_daemonic_processes_end_with_the_program(dragon_command, program, tmp_path):
    pids = tmp_path / "pids"
    path = program(
        "import dragon, multiprocessing, os, sys\n"
        "def child(started):\n"
        f"    open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "    started.set()\n"
        "    multiprocessing.Event().wait()\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    for node in dragon.nodes():\n"
        "        started = multiprocessing.Event()\n"
        "        process = multiprocessing.Process(target=child, args=(started,), daemon=True)\n"
        "        with dragon.on_node(node.index):\n"
        "            process.start()\n"
        "        started.wait()\n"
        "    sys.exit(7)\n"
    )
    ended = run(dragon_command, [path], nodes=2)
    assert ended.code == 7, ended.text()
    left = [pid for pid in map(int, pids.read_text().split()) if os.path.exists(f"/proc/{pid}")]
    assert not left, ended.text()


def test_queued_items_arrive_though_the_program_ends(dragon_command, program):
    path = program(
        "import dragon, multiprocessing\n"
        "def child(queue):\n"
        "    for n in range(3000):\n"
        "        queue.put(n)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    queue = multiprocessing.Queue()\n"
        "    process = multiprocessing.Process(target=child, args=(queue,))\n"
        "    process.start()\n"
        "    print(sum(queue.get() for _ in range(3000)))\n"
        "    process.join()\n"
        "    print(process.exitcode)\n"
    )
    ended = run(dragon_command, [path], nodes=2)
    assert (ended.code, ended.out) == (0, f"{sum(range(3000))}\n0\n"), ended.text()


def test_an_open_pool_does_not_keep_the_program(dragon_command, program):
    path = program(
        "import dragon, multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    pool = multiprocessing.Pool(2)\n"
        "    print(pool.map(abs, [-1, -2, -3]))\n"
    )
    ended = run(dragon_command, [path])
    assert (ended.code, ended.out) == (0, "[1, 2, 3]\n"), ended.text()


def test_a_failing_child_prints_its_traceback(dragon_command, program):
    path = program(
        "import dragon, multiprocessing\n"
        "def child():\n"
        "    raise ValueError('what went wrong')\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('dragon')\n"
        "    process = multiprocessing.Process(target=child)\n"
        "    process.start()\n"
        "    process.join()\n"
        "    print(process.exitcode)\n"
    )
    ended = run(dragon_command, [path])
    assert (ended.code, ended.out) == (0, "1\n"), ended.text()
    assert "ValueError: what went wrong" in ended.err, ended.text()


def test_a_program_without_main_guard_is_told_so(dragon_command, program):
    path = program(
        "import dragon, multiprocessing\n"
        "multiprocessing.set_start_method('dragon', force=True)\n"
        "process = multiprocessing.Process(target=print)\n"
        "process.start()\n"
        "process.join()\n"
        "print(process.exitcode)\n"
    )
    ended = run(dragon_command, [path])
    assert ended.out == "1\n", ended.text()
    assert "if __name__ == '__main__':" in ended.err, ended.text()


def test_150_workers_live_at_a_time_and_leave_nothing_in_the_daemon(dragon_command):
    ended = run(dragon_command, [BENCHES / "live.py", "--count", "150"], seconds=240)
    assert ended.code == 0, ended.text()
    live, _start, memory, descriptors, _daemon = (column[0] for column in json.loads(ended.out)["columns"])
    # Its connection, its pidfd, and a pipe each for output and errors.
    assert (live, round(descriptors)) == (150, 4)
    # They share what the warm interpreter has imported: one of its own would have three times as much.
    assert 0 < memory < 8
