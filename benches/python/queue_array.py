"""Queue: an array of NumPy of 64 MB to another process, which says when it has it, in milliseconds."""

import multiprocessing

import common

try:
    import numpy
except ImportError as error:
    numpy, why = None, f"NumPy cannot be imported: {error}"

NUMBERS = 8_000_000


def take(arrays, sums):
    while (array := arrays.get()) is not None:
        sums.put(float(array[0] + array[-1]))


def main():
    args = common.options(runs=3)
    if numpy is None:
        common.skip(why)
    array = numpy.arange(NUMBERS, dtype=numpy.float64)
    arrays, sums = multiprocessing.Queue(), multiprocessing.Queue()
    process = multiprocessing.Process(target=take, args=(arrays, sums))
    process.start()

    def send():
        arrays.put(array)
        if sums.get() != NUMBERS - 1:
            raise SystemExit("another array has arrived")

    values = common.warmed_up(send, args.runs, per=1, scale=1e3)
    arrays.put(None)
    process.join()
    common.report(values, "ms")


if __name__ == "__main__":
    main()
