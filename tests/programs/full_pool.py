"""A pool of 16 MiB is filled to the end: the error names pool, size, free and limit, nothing is lost, and there is room
again when messages have been taken. The exit code is 0 when that is so.
"""

import multiprocessing

import dragon

SIZE = 1 << 20


def main():
    multiprocessing.set_start_method("dragon")
    queue = multiprocessing.SimpleQueue()
    sent = 0
    try:
        while sent < 100:
            queue.put(bytes([sent]) * SIZE)
            sent += 1
    except MemoryError as error:
        assert isinstance(error, dragon.DragonError), error
        text = str(error)
    for part in ("pool 0", "bytes do not fit", "16777216", "--pool"):
        assert part in text, text
    assert sent > 10, sent
    for n in range(sent):
        assert queue.get() == bytes([n]) * SIZE, n
    queue.put(b"x" * SIZE)
    assert len(queue.get()) == SIZE
    print("ok")


if __name__ == "__main__":
    main()
