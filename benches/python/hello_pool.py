"""The smallest whole program with workers, one for each CPU. It is timed from outside, from command line to exit."""

import multiprocessing

import common


def square(number):
    return number * number


if __name__ == "__main__":
    common.options(runs=1)
    with multiprocessing.Pool(multiprocessing.cpu_count()) as pool:
        print(pool.map(square, range(4)))
