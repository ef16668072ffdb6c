"""Process: start of so many that do nothing, and then join of all, in milliseconds."""

import multiprocessing

import common


def nothing():
    pass


def start_and_join(count):
    processes = [multiprocessing.Process(target=nothing) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"a process ended with {process.exitcode}")


if __name__ == "__main__":
    args = common.options(runs=30, count=1)
    # The first one waits for a warm interpreter, or a fork server.
    start_and_join(1)
    common.report(common.timed(lambda: start_and_join(args.count), args.runs, per=1, scale=1e3), "ms")
