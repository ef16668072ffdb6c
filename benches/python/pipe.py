"""Pipe: round trip of one byte between two processes, in microseconds."""

import multiprocessing

import common

TRIPS = 1000


def echo(connection):
    while (message := connection.recv()) is not None:
        connection.send(message)


if __name__ == "__main__":
    args = common.options(runs=5)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=echo, args=(theirs,))
    process.start()

    def trips():
        for _ in range(TRIPS):
            ours.send(b"x")
            ours.recv()

    values = common.warmed_up(trips, args.runs, per=TRIPS, scale=1e6)
    ours.send(None)
    process.join()
    common.report(values, "us")
