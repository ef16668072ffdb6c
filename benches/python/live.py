"""So many workers that live at the same time on one node: what each takes to start, and what it costs. Ends when they have
ended and the daemon has given back what it had for them.

Run by the launcher of a runtime of one node: `dragon live.py --count 1000`. Prints one JSON object with a column for each
of: workers that live, milliseconds for the start of one, its proportional share of memory (PSS) in MiB, descriptors of the
daemon for one, memory of the daemon for one in KiB.
"""

import multiprocessing
import os
import time

import dragon  # noqa: F401 (registers the start method)

#: So many workers are looked at: the kernel walks all memory of each.
LOOKED_AT = 50


def work(ready, end):
    ready.release()
    end.wait()


def field(pid, file, name):
    """The number behind a name, in KiB."""
    with open(f"/proc/{pid}/{file}") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


def daemon():
    pid = os.getppid()
    return len(os.listdir(f"/proc/{pid}/fd")), field(pid, "status", "RssAnon:")


def start(count, ready, end):
    workers = [multiprocessing.Process(target=work, args=(ready, end)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    return workers


def join(workers, end):
    end.set()
    for worker in workers:
        worker.join()
        if worker.exitcode != 0:
            raise SystemExit(f"a worker ended with {worker.exitcode}")


def main(count):
    ready, end = multiprocessing.Semaphore(0), multiprocessing.Event()
    # The first one waits for the warm interpreter.
    first = multiprocessing.Event()
    join(start(1, ready, first), first)
    files, memory = daemon()
    begin = time.perf_counter()
    workers = start(count, ready, end)
    each = (time.perf_counter() - begin) * 1e3 / count
    files_now, memory_now = daemon()
    looked_at = workers[:: max(1, count // LOOKED_AT)]
    shares = [field(worker.pid, "smaps_rollup", "Pss:") for worker in looked_at]
    live = sum(worker.is_alive() for worker in workers)
    join(workers, end)
    # It closes what it had for a worker a moment after the worker's end is known here.
    while daemon()[0] - files > count // 4:
        time.sleep(0.005)
    columns = [
        live,
        each,
        sum(shares) / len(shares) / 1024,
        (files_now - files) / count,
        (memory_now - memory) / count,
    ]
    print(json.dumps({"columns": [[value] for value in columns], "note": f"{count} workers"}), flush=True)


if __name__ == "__main__":
    # Not at the top, since workers run the top of this file: what it imports there, each of them has in its memory.
    import argparse
    import json

    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000, help="how many workers")
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count {args.count}: at least 1")
    multiprocessing.set_start_method("dragon")
    main(args.count)
