"""Pool.map of tasks that do nothing: microseconds for each. A chunksize of 0 is the pool's own choice."""

import multiprocessing

import common


def nothing(number):
    return number


if __name__ == "__main__":
    args = common.options(runs=3, tasks=20_000, chunksize=1, workers=2)
    with multiprocessing.Pool(args.workers) as pool:

        def map_all(tasks=args.tasks):
            if pool.map(nothing, range(tasks), chunksize=args.chunksize or None) != list(range(tasks)):
                raise SystemExit("the pool returned something else")

        # Until each worker is there, without what a run takes where a task takes milliseconds.
        map_all(100)
        values = common.timed(map_all, args.runs, per=args.tasks, scale=1e6)
    common.report(values, "us")
