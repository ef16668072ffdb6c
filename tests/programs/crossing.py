"""Proves by counters how messages travel: to another node each crosses the fabric exactly once, and no message asks a
daemon's control plane. The exit code is 0 when that is so.
"""

import multiprocessing
import sys

import dragon
from dragon import _native

COUNT = 200


def relay(inbox, outbox, ready):
    """Takes COUNT messages from an inbox of its own node and reports what its daemon counted meanwhile."""
    ready.put(None)
    inbox.get()
    before = _native.stats()
    for _ in range(COUNT):
        inbox.get()
    after = _native.stats()
    outbox.put((before, after))


def delta(before, after, name):
    return after[name] - before[name]


def main():
    multiprocessing.set_start_method("dragon")
    inbox, outbox, ready = (multiprocessing.SimpleQueue() for _ in range(3))
    with dragon.on_node(1):
        process = multiprocessing.Process(target=relay, args=(inbox, outbox, ready))
        process.start()
    ready.get()
    inbox.put("go")
    before = _native.stats()
    for n in range(COUNT):
        inbox.put(n)
    after = _native.stats()
    theirs = outbox.get()
    process.join()
    failures = []
    # The queue is here: what crosses are the other node's receives, each answered by one message.
    received = delta(*theirs, "messages_received")
    if received != COUNT:
        failures.append(f"{COUNT} messages received from another node crossed the fabric {received} times")
    requests = delta(*theirs, "requests_sent")
    if requests != COUNT:
        failures.append(f"{COUNT} receives from another node took {requests} requests")
    # The question for the counters is itself a request to the control plane.
    for where, counts in (("this node", (before, after)), ("the other node", theirs)):
        asked = delta(*counts, "control_requests") - 1
        if asked != 0:
            failures.append(f"{COUNT} messages cost {asked} requests to the control plane on {where}")

    # The other way: sends to a queue of another node.
    before = _native.stats()
    with dragon.on_node(1):
        process = multiprocessing.Process(target=fill, args=(inbox, outbox))
        process.start()
    for _ in range(COUNT):
        inbox.get()
    process.join()
    sent = outbox.get()
    if sent != COUNT:
        failures.append(f"{COUNT} messages to another node crossed the fabric {sent} times")
    for failure in failures:
        print(failure, file=sys.stderr)
    print("ok" if not failures else "wrong")
    sys.exit(bool(failures))


def fill(queue, report):
    """Sends COUNT messages to a queue of another node; reports how many crossed the fabric for that."""
    before = _native.stats()
    for n in range(COUNT):
        queue.put(n)
    report.put(delta(before, _native.stats(), "messages_sent"))


if __name__ == "__main__":
    main()
