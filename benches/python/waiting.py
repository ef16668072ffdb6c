"""CPU time, in milliseconds, of a process that waits a second for a message: of a queue, or of a pipe with `--on pipe`."""

import multiprocessing
import time

import common

SECONDS = 1.0


def wait(receive, results):
    while receive() is not None:
        before = time.process_time()
        receive()
        results.put((time.process_time() - before) * 1e3)


if __name__ == "__main__":
    args = common.options(runs=2, on="queue")
    results = multiprocessing.Queue()
    if args.on == "queue":
        queue = multiprocessing.Queue()
        send, receive = queue.put, queue.get
    else:
        theirs, ours = multiprocessing.Pipe(duplex=False)
        send, receive = ours.send, theirs.recv
    process = multiprocessing.Process(target=wait, args=(receive, results))
    process.start()
    values = []
    for _ in range(args.runs):
        send("begin")
        time.sleep(SECONDS)
        send("end")
        values.append(results.get())
    send(None)
    process.join()
    common.report(values, "ms")
