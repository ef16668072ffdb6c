"""The examples of the standard library's documentation of `multiprocessing` and `multiprocessing.shared_memory`.

They are the documentation's own (which has them under the Zero-Clause BSD licence), shortened where they print much, with
`import dragon` and the start method "dragon". Each runs on two nodes, every process on the other node than its creator.
"""

import re
import textwrap

import pytest
from programs import run

REMOTE = {"DRAGON_PLACEMENT": "remote"}


@pytest.fixture
def example(program, dragon_command):
    """Runs an example; its lines of output."""

    def example(definitions, main, *, code=0):
        main = "set_start_method('dragon')\n" + textwrap.dedent(main)
        text = (
            "import dragon\nimport multiprocessing as mp\nfrom multiprocessing import *\n"
            + textwrap.dedent(definitions)
            + "\nif __name__ == '__main__':\n"
            + textwrap.indent(main, "    ")
        )
        ended = run(dragon_command, [program(text)], nodes=2, env=REMOTE)
        assert ended.code == code, ended.text()
        return ended.out.splitlines()

    return example


def test_pool(example):
    assert example(
        """
        def f(x):
            return x*x
        """,
        """
        with Pool(5) as p:
            print(p.map(f, [1, 2, 3]))
        """,
    ) == ["[1, 4, 9]"]


def test_process(example):
    assert example(
        """
        def f(name):
            print('hello', name)
        """,
        """
        p = Process(target=f, args=('bob',))
        p.start()
        p.join()
        """,
    ) == ["hello bob"]


def test_ids_of_processes(example):
    lines = example(
        """
        import os

        def info(title):
            print(title)
            print('module name:', __name__)
            print('node:', dragon.node().index)
            print('process id:', os.getpid())

        def f(name):
            info('function f')
            print('hello', name)
        """,
        """
        info('main line')
        p = Process(target=f, args=('bob',))
        p.start()
        p.join()
        """,
    )
    assert [line for line in lines if "process id" not in line] == [
        "main line", "module name: __main__", "node: 0",
        "function f", "module name: __mp_main__", "node: 1", "hello bob",
    ]  # fmt: skip


def test_start_method_by_context(example):
    assert example(
        """
        def foo(q):
            q.put('hello')
        """,
        """
        ctx = mp.get_context('dragon')
        q = ctx.Queue()
        p = ctx.Process(target=foo, args=(q,))
        p.start()
        print(q.get())
        p.join()
        """,
    ) == ["hello"]


def test_queue(example):
    assert example(
        """
        def f(q):
            q.put([42, None, 'hello'])
        """,
        """
        q = Queue()
        p = Process(target=f, args=(q,))
        p.start()
        print(q.get())
        p.join()
        """,
    ) == ["[42, None, 'hello']"]


def test_pipe(example):
    assert example(
        """
        def f(conn):
            conn.send([42, None, 'hello'])
            conn.close()
        """,
        """
        parent_conn, child_conn = Pipe()
        p = Process(target=f, args=(child_conn,))
        p.start()
        print(parent_conn.recv())
        p.join()
        """,
    ) == ["[42, None, 'hello']"]


def test_lock(example):
    lines = example(
        """
        def f(l, i):
            l.acquire()
            try:
                print('hello world', i)
            finally:
                l.release()
        """,
        """
        lock = Lock()
        all = [Process(target=f, args=(lock, num)) for num in range(10)]
        for p in all: p.start()
        for p in all: p.join()
        """,
    )
    assert sorted(lines) == [f"hello world {i}" for i in range(10)]


def test_shared_memory_of_value_and_array(example):
    assert example(
        """
        def f(n, a):
            n.value = 3.1415927
            for i in range(len(a)):
                a[i] = -a[i]
        """,
        """
        num = Value('d', 0.0)
        arr = Array('i', range(10))
        p = Process(target=f, args=(num, arr))
        p.start()
        p.join()
        print(num.value)
        print(arr[:])
        """,
    ) == ["3.1415927", "[0, -1, -2, -3, -4, -5, -6, -7, -8, -9]"]


def test_server_process(example):
    assert example(
        """
        def f(d, l):
            d[1] = '1'
            d['2'] = 2
            d[0.25] = None
            l.reverse()
        """,
        """
        with Manager() as manager:
            d = manager.dict()
            l = manager.list(range(10))
            p = Process(target=f, args=(d, l))
            p.start()
            p.join()
            print(d)
            print(l)
        """,
    ) == ["{1: '1', '2': 2, 0.25: None}", "[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]"]


def test_pool_of_workers(example):
    lines = example(
        """
        import os, time

        def f(x):
            return x*x
        """,
        """
        with Pool(processes=4) as pool:
            print(pool.map(f, range(10)))
            print(sorted(pool.imap_unordered(f, range(10))))
            res = pool.apply_async(f, (20,))
            print(res.get(timeout=30))
            res = pool.apply_async(os.getpid, ())
            print('pid', res.get(timeout=30))
            multiple_results = [pool.apply_async(os.getpid, ()) for i in range(4)]
            print('pids', [res.get(timeout=30) for res in multiple_results])
            res = pool.apply_async(time.sleep, (10,))
            try:
                print(res.get(timeout=0.1))
            except TimeoutError:
                print("We lacked patience and got a multiprocessing.TimeoutError")
            print("For the moment, the pool remains available for more work")
        print("Now the pool is closed and no longer available")
        """,
    )
    squares = str([x * x for x in range(10)])
    assert lines[:3] == [squares, squares, "400"]
    assert re.fullmatch(r"pid \d+", lines[3]) and re.fullmatch(r"pids \[\d+, \d+, \d+, \d+\]", lines[4])
    assert lines[5:] == [
        "We lacked patience and got a multiprocessing.TimeoutError",
        "For the moment, the pool remains available for more work",
        "Now the pool is closed and no longer available",
    ]


def test_process_and_its_end(example):
    lines = example(
        "import signal, time",
        """
        p = Process(target=time.sleep, args=(1000,))
        print(p, p.is_alive())
        p.start()
        print(p, p.is_alive())
        p.terminate()
        p.join()
        print(p, p.is_alive())
        print(p.exitcode == -signal.SIGTERM)
        """,
    )
    assert "initial" in lines[0] and lines[0].endswith("> False")
    assert "started" in lines[1] and lines[1].endswith("> True")
    assert "stopped exitcode=-SIGTERM" in lines[2] and lines[2].endswith("> False")
    assert lines[3] == "True"


def test_connection_objects(example):
    assert example(
        "import array",
        """
        a, b = Pipe()
        a.send([1, 'hello', None])
        print(b.recv())
        b.send_bytes(b'thank you')
        print(a.recv_bytes())
        arr1 = array.array('i', range(5))
        arr2 = array.array('i', [0] * 10)
        a.send_bytes(arr1)
        count = b.recv_bytes_into(arr2)
        assert count == len(arr1) * arr1.itemsize
        print(arr2)
        """,
    ) == ["[1, 'hello', None]", "b'thank you'", "array('i', [0, 1, 2, 3, 4, 0, 0, 0, 0, 0])"]


def test_ctypes_objects_from_shared_memory(example):
    assert example(
        """
        from multiprocessing.sharedctypes import Value, Array
        from ctypes import Structure, c_double

        class Point(Structure):
            _fields_ = [('x', c_double), ('y', c_double)]

        def modify(n, x, s, A):
            n.value **= 2
            x.value **= 2
            s.value = s.value.upper()
            for a in A:
                a.x **= 2
                a.y **= 2
        """,
        """
        lock = Lock()
        n = Value('i', 7)
        x = Value(c_double, 1.0/3.0, lock=False)
        s = Array('c', b'hello world', lock=lock)
        A = Array(Point, [(1.875, -6.25), (-5.75, 2.0), (2.375, 9.5)], lock=lock)
        p = Process(target=modify, args=(n, x, s, A))
        p.start()
        p.join()
        print(n.value)
        print(x.value)
        print(s.value)
        print([(a.x, a.y) for a in A])
        """,
    ) == ["49", "0.1111111111111111", "b'HELLO WORLD'", "[(3.515625, 39.0625), (33.0625, 4.0), (5.640625, 90.25)]"]


def test_namespace(example):
    assert example(
        "",
        """
        manager = mp.Manager()
        Global = manager.Namespace()
        Global.x = 10
        Global.y = 'hello'
        Global._z = 12.3    # this is an attribute of the proxy
        print(Global)
        """,
    ) == ["Namespace(x=10, y='hello')"]


def test_customized_manager(example):
    assert example(
        """
        from multiprocessing.managers import BaseManager

        class MathsClass:
            def add(self, x, y):
                return x + y
            def mul(self, x, y):
                return x * y

        class MyManager(BaseManager):
            pass

        MyManager.register('Maths', MathsClass)
        """,
        """
        with MyManager() as manager:
            maths = manager.Maths()
            print(maths.add(4, 3))
            print(maths.mul(7, 8))
        """,
    ) == ["7", "56"]


def test_remote_manager(example):
    assert example(
        """
        from multiprocessing.managers import BaseManager
        import queue

        class Server(BaseManager): pass
        class Client(BaseManager): pass
        Client.register('get_queue')
        kept = queue.Queue()

        def get_queue():
            return kept

        Server.register('get_queue', callable=get_queue)

        def worker(address):
            m = Client(address=address, authkey=b'abracadabra')
            m.connect()
            m.get_queue().put('hello')
        """,
        """
        m = Server(address=('127.0.0.1', 0), authkey=b'abracadabra')
        m.start()
        p = Process(target=worker, args=(m.address,))
        p.start()
        p.join()
        print(m.get_queue().get())
        m.shutdown()
        """,
    ) == ["hello"]


def test_proxies(example):
    lines = example(
        "",
        """
        manager = Manager()
        l = manager.list([i*i for i in range(10)])
        print(l)
        print(repr(l)[:22])
        print(l[4], l[2:5])
        a = manager.list()
        b = manager.list()
        a.append(b)         # referent of a now contains referent of b
        b.append('hello')
        print(a[0], b)
        l_outer = manager.list([manager.dict() for i in range(2)])
        d_first_inner = l_outer[0]
        d_first_inner['a'] = 1
        d_first_inner['b'] = 2
        l_outer[1]['c'] = 3
        l_outer[1]['z'] = 26
        print(l_outer[0], l_outer[1])
        """,
    )
    assert lines == [
        "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]",
        "<ListProxy object, typ",
        "16 [4, 9, 16]",
        "['hello'] ['hello']",
        "{'a': 1, 'b': 2} {'c': 3, 'z': 26}",
    ]


def test_listener_and_client(example):
    assert example(
        """
        from multiprocessing.connection import Client, Listener
        from array import array

        def client(address):
            with Client(address, authkey=b'secret password') as conn:
                print(conn.recv())
                print(conn.recv_bytes())
                arr = array('i', [0, 0, 0, 0, 0])
                print(conn.recv_bytes_into(arr))
                print(arr)
        """,
        """
        with Listener(('localhost', 0), authkey=b'secret password') as listener:
            p = Process(target=client, args=(listener.address,))
            p.start()
            with listener.accept() as conn:
                conn.send([2.25, None, 'junk', float])
                conn.send_bytes(b'hello')
                conn.send_bytes(array('i', [42, 1729]))
            p.join()
        """,
    ) == ["[2.25, None, 'junk', <class 'float'>]", "b'hello'", "8", "array('i', [42, 1729, 0, 0, 0])"]


def test_wait_for_several_connections(example):
    lines = example(
        """
        from multiprocessing.connection import wait

        def foo(w):
            for i in range(10):
                w.send((i, current_process().name))
            w.close()
        """,
        """
        readers = []
        for i in range(4):
            r, w = Pipe(duplex=False)
            readers.append(r)
            p = Process(target=foo, args=(w,))
            p.start()
            # We close the writable end of the pipe now to be sure that p is the only process which owns a handle for it.
            w.close()
        while readers:
            for r in wait(readers):
                try:
                    msg = r.recv()
                except EOFError:
                    readers.remove(r)
                else:
                    print(msg)
        """,
    )
    assert sorted(lines) == sorted(f"({i}, 'Process-{n}')" for i in range(10) for n in range(1, 5))


def test_logging(example):
    lines = example(
        "import logging, sys",
        """
        logger = mp.get_logger()
        handler = logging.StreamHandler(sys.stdout)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.warning('doomed')
        m = Manager()
        del m
        """,
    )
    assert lines[0] == "doomed"


def test_daemonic_processes_may_not_have_children(example):
    lines = example(
        """
        def f():
            try:
                Process(target=print).start()
            except AssertionError as error:
                print(error)
        """,
        """
        p = Process(target=f, daemon=True)
        p.start()
        p.join()
        """,
    )
    assert lines == ["daemonic processes are not allowed to have children"]


NEW_TYPES = """
from multiprocessing.managers import BaseManager, BaseProxy
import operator

class Foo:
    def f(self):
        print('you called Foo.f()')
    def g(self):
        print('you called Foo.g()')
    def _h(self):
        print('you called Foo._h()')

def baz():
    for i in range(10):
        yield i*i

class GeneratorProxy(BaseProxy):
    _exposed_ = ['__next__']
    def __iter__(self):
        return self
    def __next__(self):
        return self._callmethod('__next__')

def get_operator_module():
    return operator

class MyManager(BaseManager):
    pass

MyManager.register('Foo1', Foo)
MyManager.register('Foo2', Foo, exposed=('g', '_h'))
MyManager.register('baz', baz, proxytype=GeneratorProxy)
MyManager.register('operator', get_operator_module)
"""


def test_customized_managers_and_proxies(example):
    lines = example(
        NEW_TYPES,
        """
        manager = MyManager()
        manager.start()
        f1 = manager.Foo1()
        f1.f()
        f1.g()
        print(hasattr(f1, '_h'), sorted(f1._exposed_))
        f2 = manager.Foo2()
        f2.g()
        f2._h()
        print(hasattr(f2, 'f'), sorted(f2._exposed_))
        print(list(manager.baz()))
        op = manager.operator()
        print(op.add(23, 45), op.pow(2, 94))
        manager.shutdown()
        """,
    )
    said = [line for line in lines if line.startswith("you")]
    assert sorted(said) == [
        "you called Foo._h()", "you called Foo.f()", "you called Foo.g()", "you called Foo.g()"
    ]  # fmt: skip
    assert [line for line in lines if not line.startswith("you")] == [
        "False ['f', 'g']",
        "False ['_h', 'g']",
        "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]",
        "68 19807040628566084398385987584",
    ]


def test_uses_of_a_pool(example):
    lines = example(
        """
        import time, random

        def calculate(func, args):
            return func(*args)

        def calculatestar(args):
            return calculate(*args)

        def mul(a, b):
            return a * b

        def plus(a, b):
            return a + b

        def f(x):
            return 1.0 / (x - 5.0)

        def noop(x):
            pass
        """,
        """
        with mp.Pool(4) as pool:
            TASKS = [(mul, (i, 7)) for i in range(10)] + [(plus, (i, 8)) for i in range(10)]
            results = [pool.apply_async(calculate, t) for t in TASKS]
            print([r.get() for r in results])
            print(list(pool.imap(calculatestar, TASKS)))
            print(sorted(pool.imap_unordered(calculatestar, TASKS)))
            for failing in [lambda: pool.apply(f, (5,)), lambda: pool.map(f, list(range(10))), lambda: list(pool.imap(f, list(range(10))))]:
                try:
                    failing()
                except ZeroDivisionError:
                    print('Got ZeroDivisionError')
            it = pool.imap(f, list(range(10)))
            got = 0
            for i in range(10):
                try:
                    next(it)
                    got += 1
                except ZeroDivisionError:
                    print('at', i)
            print('got', got)
            res = pool.apply_async(time.sleep, (0.3,))
            while True:
                try:
                    res.get(0.02)
                    break
                except mp.TimeoutError:
                    pass
            print('slept')
            print(pool.map(noop, range(3)))
        """,
    )
    results = [i * 7 for i in range(10)] + [i + 8 for i in range(10)]
    assert lines == [
        str(results), str(results), str(sorted(results)),
        *["Got ZeroDivisionError"] * 3, "at 5", "got 9", "slept", "[None, None, None]",
    ]  # fmt: skip


def test_queues_that_feed_workers(example):
    lines = example(
        """
        def worker(input, output):
            for func, args in iter(input.get, 'STOP'):
                output.put(calculate(func, args))

        def calculate(func, args):
            result = func(*args)
            return '%s says that %s%s = %s' % (current_process().name, func.__name__, args, result)

        def mul(a, b):
            return a * b

        def plus(a, b):
            return a + b
        """,
        """
        NUMBER_OF_PROCESSES = 4
        TASKS1 = [(mul, (i, 7)) for i in range(20)]
        TASKS2 = [(plus, (i, 8)) for i in range(10)]
        task_queue = Queue()
        done_queue = Queue()
        for task in TASKS1:
            task_queue.put(task)
        for i in range(NUMBER_OF_PROCESSES):
            Process(target=worker, args=(task_queue, done_queue)).start()
        for i in range(len(TASKS1)):
            print(done_queue.get())
        for task in TASKS2:
            task_queue.put(task)
        for i in range(len(TASKS2)):
            print(done_queue.get())
        for i in range(NUMBER_OF_PROCESSES):
            task_queue.put('STOP')
        """,
    )
    said = [re.sub(r"^Process-[1-4] says that ", "", line) for line in lines]
    assert sorted(said) == sorted(
        [f"mul({i}, 7) = {i * 7}" for i in range(20)] + [f"plus({i}, 8) = {i + 8}" for i in range(10)]
    )


def test_shared_memory(example):
    assert example(
        """
        from multiprocessing import shared_memory

        def other(name):
            shm_b = shared_memory.SharedMemory(name)
            import array
            print(array.array('b', shm_b.buf[:5]))
            shm_b.buf[:5] = b'howdy'
            shm_b.close()
        """,
        """
        shm_a = shared_memory.SharedMemory(create=True, size=10)
        buffer = shm_a.buf
        print(len(buffer))
        buffer[:4] = bytearray([22, 33, 44, 55])
        buffer[4] = 100
        p = Process(target=other, args=(shm_a.name,))
        p.start()
        p.join()
        print(bytes(shm_a.buf[:5]))
        del buffer
        shm_a.close()
        shm_a.unlink()
        """,
    ) == ["10", "array('b', [22, 33, 44, 55, 100])", "b'howdy'"]


def test_shared_memory_of_an_array(example):
    assert example(
        """
        import numpy as np
        from multiprocessing import shared_memory

        def other(name):
            existing_shm = shared_memory.SharedMemory(name=name)
            c = np.ndarray((6,), dtype=np.int64, buffer=existing_shm.buf)
            print(c.tolist())
            c[-1] = 888
            del c
            existing_shm.close()
        """,
        """
        a = np.array([1, 1, 2, 3, 5, 8])
        shm = shared_memory.SharedMemory(create=True, size=a.nbytes)
        b = np.ndarray(a.shape, dtype=a.dtype, buffer=shm.buf)
        b[:] = a[:]
        p = Process(target=other, args=(shm.name,))
        p.start()
        p.join()
        print(b.tolist())
        del b
        shm.close()
        shm.unlink()
        """,
    ) == ["[1, 1, 2, 3, 5, 8]", "[1, 1, 2, 3, 5, 888]"]


def test_shared_memory_manager(example):
    assert example(
        """
        from multiprocessing.managers import SharedMemoryManager

        def do_work(shared_list, start, stop):
            for i in range(start, stop):
                shared_list[i] *= 2
        """,
        """
        with SharedMemoryManager() as smm:
            sl = smm.ShareableList(range(2000))
            p1 = Process(target=do_work, args=(sl, 0, 1000))
            p2 = Process(target=do_work, args=(sl, 1000, 2000))
            p1.start()
            p2.start()
            p1.join()
            p2.join()
            print(sum(sl) == 2 * sum(range(2000)))
        """,
    ) == ["True"]


def test_shareable_list(example):
    assert example(
        """
        from multiprocessing import shared_memory

        def other(name):
            c = shared_memory.ShareableList(name=name)
            c[-1] = -999
            c.shm.close()
        """,
        """
        a = shared_memory.ShareableList(['howdy', b'HoWdY', -273.154, 100, None, True, 42])
        print([type(entry).__name__ for entry in a])
        a[2] = -78.5
        a[2] = 'dry ice'  # Changing data types is supported as well
        try:
            a[2] = 'larger than previously allocated storage space'
        except ValueError as error:
            print(error)
        print(len(a), a.index(42), a.count(b'howdy'), a.count(b'HoWdY'))
        p = Process(target=other, args=(a.shm.name,))
        p.start()
        p.join()
        print(a[-1])
        a.shm.close()
        a.shm.unlink()
        """,
    ) == [
        "['str', 'bytes', 'float', 'int', 'NoneType', 'bool', 'int']",
        "bytes/str item exceeds available storage",
        "7 6 0 1",
        "-999",
    ]
