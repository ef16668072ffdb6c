"""Lock: acquire and release, or with `--on value` an increment of a Value under its lock, in microseconds for each.

By so many processes at the same time; by this one alone, without others, where it is 1.
"""

import multiprocessing

import common


def lock_rounds(lock, rounds):
    for _ in range(rounds):
        lock.acquire()
        lock.release()


def value_rounds(value, rounds):
    for _ in range(rounds):
        with value.get_lock():
            value.value += 1


def contend(work, shared, rounds, gate):
    while gate.recv():
        work(shared, rounds)
        gate.send(None)
    gate.send(None)


def together(work, shared, args):
    """Lets all go at the same time, and waits until all are done. A pipe for each: barriers are measured nowhere here."""
    gates = []
    for _ in range(args.processes):
        ours, theirs = multiprocessing.Pipe()
        multiprocessing.Process(target=contend, args=(work, shared, args.rounds, theirs), daemon=True).start()
        gates.append(ours)

    def all_of_them(go_on=True):
        for gate in gates:
            gate.send(go_on)
        for gate in gates:
            gate.recv()

    values = common.warmed_up(all_of_them, args.runs, per=args.rounds * args.processes, scale=1e6)
    all_of_them(go_on=False)
    return values


if __name__ == "__main__":
    args = common.options(runs=5, on="lock", processes=1, rounds=2000)
    if args.on == "lock":
        work, shared = lock_rounds, multiprocessing.Lock()
    else:
        work, shared = value_rounds, multiprocessing.Value("q", 0)
    if args.processes == 1:
        # What warms up when a runtime begins is done when a process has ended.
        first = multiprocessing.Process(target=work, args=(shared, args.rounds))
        first.start()
        first.join()
        values = common.warmed_up(lambda: work(shared, args.rounds), args.runs, per=args.rounds, scale=1e6)
    else:
        values = together(work, shared, args)
    if args.on == "value" and shared.value % args.rounds:
        raise SystemExit(f"increments were lost: {shared.value}")
    common.report(values, "us")
