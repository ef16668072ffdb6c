"""Values and arrays, used on their own node and on another one."""

import ctypes
import multiprocessing

import pytest


class Inner(ctypes.Structure):
    _fields_ = [("n", ctypes.c_int), ("letters", ctypes.c_char * 5)]


class Outer(ctypes.Structure):
    _fields_ = [("x", ctypes.c_double), ("inner", Inner), ("low", ctypes.c_uint, 3), ("high", ctypes.c_uint, 5)]


def add(counter, times):
    for _ in range(times):
        with counter.get_lock():
            counter.value += 1


def assign(array, index, value):
    array[index] = value


def change(outer):
    outer.x *= 2
    outer.inner.n += 1
    outer.inner.letters = b"abc"
    outer.high = 17


def change_second(array):
    array[1].inner.n = 7


def set_text(text, value):
    text.value = value


def report(what, connection):
    connection.send(what(*connection.recv()))


def hold_and_wait(value, held):
    value.get_lock().acquire()
    value.value = 5
    held.set()
    multiprocessing.Event().wait()


def test_increments_of_several_processes_add_up(ctx, start, node):
    counter = ctx.Value("q", 2**33)
    processes = [start(node, add, counter, 200) for _ in range(3)]
    add(counter, 200)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert counter.value == 2**33 + 800


@pytest.mark.parametrize(("code", "first", "second"), [("i", -3, 4), ("d", 0.5, -4.25), ("c", b"x", b"y"), ("u", "x", "ö")])
def test_values_without_lock(ctx, start, node, code, first, second):
    value = ctx.Value(code, first, lock=False)
    raw = ctx.RawValue(code, first)
    assert (value.value, raw.value) == (first, first)
    for one in (value, raw):
        start(node, set_text, one, second).join()
    assert (value.value, raw.value) == (second, second)


@pytest.mark.parametrize(
    ("index", "value"),
    [(0, 5), (-1, 6), (slice(2, 5), [7, 8, 9]), (slice(None), range(10, 20)), (slice(1, 9, 3), [1, 2, 3]), (slice(8, 5, -1), [4, 5, 6])],
)
@pytest.mark.parametrize("lock", [True, False])
def test_elements_and_slices(ctx, start, node, index, value, lock):
    array = ctx.Array("i", range(10), lock=lock)
    expected = list(range(10))
    expected[index] = value
    process = start(node, assign, array, index, value)
    process.join()
    assert (process.exitcode, list(array[:])) == (0, expected)


def look(array):
    return len(array), array[2], array[-1], list(array), list(array[1:3]), sum(1 for _ in array)


def test_what_another_process_sees(ctx, start, node):
    array = ctx.RawArray("h", [1, -2, 3])
    ours, theirs = ctx.Pipe()
    start(node, send_look, array, theirs)
    assert ours.recv() == look(array)
    for bad in (3, -4):
        start(node, send_error, array, bad, theirs)
        assert ours.recv() == "IndexError"


def send_look(array, connection):
    connection.send(look(array))


def send_error(array, index, connection):
    try:
        array[index]
    except Exception as error:
        connection.send(type(error).__name__)


def test_structures_with_parts(ctx, start, node):
    for lock in (True, False):
        outer = ctx.Value(Outer, 1.5, Inner(3, b"xyz"), 2, 3, lock=lock)
        process = start(node, change, outer)
        process.join()
        assert process.exitcode == 0
        assert (outer.x, outer.inner.n, outer.inner.letters, outer.low, outer.high) == (3.0, 4, b"abc", 2, 17)


def test_structures_in_an_array(ctx, start, node):
    array = ctx.RawArray(Outer, 3)
    start(node, change_second, array).join()
    assert [one.inner.n for one in array] == [0, 7, 0]


def test_text(ctx, start, node):
    text = ctx.Array("c", 10)
    text.value = b"hello"
    start(node, set_text, text, b"hellohello").join()
    assert text.value == b"hellohello"
    assert text.raw == b"hellohello"


def test_numpy_sees_the_memory_itself_on_its_node(ctx, start):
    numpy = pytest.importorskip("numpy")
    array = ctx.RawArray("d", 4)
    view = numpy.frombuffer(array)
    start(0, assign, array, 2, 2.5).join()
    assert view.tolist() == [0, 0, 2.5, 0]


def test_lock_of_a_killed_process_is_handed_on(ctx, start, node):
    value, held = ctx.Value("i", 0), ctx.Event()
    process = start(node, hold_and_wait, value, held)
    held.wait()
    process.kill()
    process.join()
    with value.get_lock():
        assert value.value == 5


def test_large_array(ctx, start, node):
    size = 9 << 20  # more than one piece of what nodes copy at once
    array = ctx.RawArray("B", size)
    start(node, assign, array, slice(size - (5 << 20), size), bytes(range(256)) * (5 << 12)).join()
    assert bytes(array[:4]) == bytes(4)
    assert bytes(array[size - 256 :]) == bytes(range(256))
