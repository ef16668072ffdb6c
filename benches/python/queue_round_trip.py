"""Queue: round trip of a small object between two processes, over one queue each way, in microseconds."""

import multiprocessing

import common

TRIPS = 1000


def echo(there, back):
    while (message := there.get()) is not None:
        back.put(message)


if __name__ == "__main__":
    args = common.options(runs=5)
    there, back = multiprocessing.Queue(), multiprocessing.Queue()
    process = multiprocessing.Process(target=echo, args=(there, back))
    process.start()

    def trips():
        for number in range(TRIPS):
            there.put(number)
            back.get()

    values = common.warmed_up(trips, args.runs, per=TRIPS, scale=1e6)
    there.put(None)
    process.join()
    common.report(values, "us")
