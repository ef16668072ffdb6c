"""Uses what `multiprocessing` offers between processes, under the start method of its first argument.

Everything that passes between the processes has `MARK` in it; the last line says how many of them were started.
"""

import multiprocessing
import sys

import dragon  # noqa: F401  (adds the start method)

#: Not written as it is seen: the interpreter reads this file, too.
MARK = bytes(reversed(b"krat-naps-eht-nees")) * 2
LARGE = MARK * 100_000


def work(queue, end, lock, condition, event, barrier, value, array):
    with lock, value.get_lock():
        value.value += 1
        array[0] = 1
    assert bytes(end.recv()) == MARK
    end.send(MARK)
    end.send_bytes(LARGE)
    queue.put(MARK)
    queue.put(LARGE)
    barrier.wait()
    with condition:
        condition.wait_for(event.is_set)


def same(item):
    return item


def main(method):
    multiprocessing.set_start_method(method)
    queue, (ours, theirs) = multiprocessing.Queue(), multiprocessing.Pipe()
    lock, condition, event = multiprocessing.Lock(), multiprocessing.Condition(), multiprocessing.Event()
    barrier, value, array = multiprocessing.Barrier(2), multiprocessing.Value("i", 0), multiprocessing.Array("i", 4)
    shared = (queue, theirs, lock, condition, event, barrier, value, array)
    worker = multiprocessing.Process(target=work, args=shared)
    worker.start()
    ours.send(MARK)
    assert ours.recv() == MARK and ours.recv_bytes() == LARGE
    assert queue.get() == MARK and queue.get() == LARGE
    barrier.wait()
    with condition:
        event.set()
        condition.notify_all()
    worker.join()
    assert (worker.exitcode, value.value, array[0]) == (0, 1, 1)
    with multiprocessing.Pool(2) as pool:
        assert pool.map(same, [MARK, LARGE, MARK], chunksize=1) == [MARK, LARGE, MARK]
    print(3)


if __name__ == "__main__":
    main(sys.argv[1])
