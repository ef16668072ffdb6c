"""Process: start and join of one that does nothing, in milliseconds."""

import multiprocessing

import common


def nothing():
    pass


def start_and_join():
    process = multiprocessing.Process(target=nothing)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"the process ended with {process.exitcode}")


if __name__ == "__main__":
    args = common.options(runs=30)
    common.report(common.timed(start_and_join, args.runs, per=1, scale=1e3), "ms")
