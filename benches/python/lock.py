"""Lock: acquire and release that nobody contends, in microseconds."""

import multiprocessing

import common

ROUNDS = 10_000


if __name__ == "__main__":
    args = common.options(runs=15)
    lock = multiprocessing.Lock()

    def rounds():
        for _ in range(ROUNDS):
            lock.acquire()
            lock.release()

    common.report(common.timed(rounds, args.runs, per=ROUNDS, scale=1e6), "us")
