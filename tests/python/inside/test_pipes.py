"""Pipes whose ends are on any nodes."""

import os
import selectors
import signal
import threading
from multiprocessing import BufferTooShort
from multiprocessing.connection import wait

import pytest


def echo(end):
    try:
        while True:
            end.send(end.recv())
    except EOFError:
        pass


def send_and_leave(end, items):
    for item in items:
        end.send(item)


def send_bytes(end, data):
    end.send_bytes(data)


def send_through(end):
    end.recv().send((os.getpid(), "through"))


def test_round_trips(ctx, start, node):
    ours, theirs = ctx.Pipe()
    start(node, echo, theirs)
    for value in (1, "two", [3], b"4" * 1000, {5: None}, b"6" * (1 << 20)):
        ours.send(value)
        assert ours.recv() == value


def test_one_way(ctx, start, node):
    reader, writer = ctx.Pipe(duplex=False)
    assert reader.readable and not reader.writable and writer.writable and not writer.readable
    with pytest.raises(OSError, match="write-only"):
        writer.recv()
    with pytest.raises(OSError, match="read-only"):
        reader.send(1)
    start(node, send_and_leave, writer, ["hello"])
    assert reader.recv() == "hello"


def test_end_of_file_when_the_other_process_ends(ctx, start, node):
    reader, writer = ctx.Pipe(duplex=False)
    process = start(node, send_and_leave, writer, range(3))
    writer.close()
    assert [reader.recv() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(EOFError):
        reader.recv()
    with pytest.raises(EOFError):
        reader.recv()
    process.join()
    assert process.exitcode == 0


def test_end_of_file_behind_a_full_channel(ctx):
    reader, writer = ctx.Pipe(duplex=False)
    for number in range(256):
        writer.send(number)
    writer.close()
    assert [reader.recv() for _ in range(256)] == list(range(256))
    with pytest.raises(EOFError):
        reader.recv()


def test_end_of_file_when_the_end_is_let_go(ctx):
    reader, writer = ctx.Pipe(duplex=False)
    writer.send(1)
    del writer
    assert reader.recv() == 1
    assert reader.poll()
    with pytest.raises(EOFError):
        reader.recv()


def test_no_end_of_file_while_another_process_has_the_end(ctx, start, node):
    ours, theirs = ctx.Pipe()
    process = start(node, echo, theirs)
    theirs.close()
    ours.send(1)
    assert ours.recv() == 1
    ours.close()
    process.join()


def test_broken_pipe(ctx):
    reader, writer = ctx.Pipe(duplex=False)
    reader.close()
    with pytest.raises(BrokenPipeError):
        writer.send(1)
    with pytest.raises(BrokenPipeError):
        writer.send_bytes(b"1")


def test_closed(ctx):
    ours, theirs = ctx.Pipe()
    assert not ours.closed
    with ours:
        pass
    assert ours.closed
    for operation in (lambda: ours.send(1), ours.recv, ours.poll, lambda: ours.recv_bytes()):
        with pytest.raises(OSError, match="handle is closed"):
            operation()
    theirs.close()


def test_poll(ctx):
    ours, theirs = ctx.Pipe()
    assert not ours.poll()
    assert not ours.poll(0.05)
    theirs.send(1)
    assert ours.poll() and ours.poll(5) and ours.poll(None)
    assert ours.recv() == 1
    assert not ours.poll()


@pytest.mark.parametrize("data", [b"", b"x", b"y" * 70_000])
def test_bytes(ctx, start, node, data):
    reader, writer = ctx.Pipe(duplex=False)
    start(node, send_bytes, writer, data)
    assert reader.recv_bytes() == data


def test_bytes_of_a_part(ctx):
    reader, writer = ctx.Pipe(duplex=False)
    writer.send_bytes(bytearray(b"abcdef"), 2, 3)
    assert reader.recv_bytes() == b"cde"
    with pytest.raises(ValueError):
        writer.send_bytes(b"abc", 4)
    writer.send_bytes(b"too long")
    with pytest.raises(OSError, match="bad message length"):
        reader.recv_bytes(3)


def test_bytes_into(ctx):
    reader, writer = ctx.Pipe()
    buffer = bytearray(10)
    writer.send_bytes(b"abc")
    assert reader.recv_bytes_into(buffer, 2) == 3
    assert buffer[:6] == b"\0\0abc\0"
    writer.send_bytes(b"x" * 11)
    with pytest.raises(BufferTooShort):
        reader.recv_bytes_into(buffer)


def test_a_connection_over_a_connection(ctx, start, node):
    ours, theirs = ctx.Pipe()
    reader, writer = ctx.Pipe(duplex=False)
    process = start(node, send_through, theirs)
    ours.send(writer)
    writer.close()
    assert reader.recv() == (process.pid, "through")
    with pytest.raises(EOFError):
        reader.recv()


def test_file_descriptor_is_readable_while_there_is_something_to_receive(ctx, start, node):
    ours, theirs = ctx.Pipe()
    start(node, echo, theirs)
    with selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        assert selector.select(0) == []
        for value in range(3):
            ours.send(value)
            assert len(selector.select(60)) == 1
            assert ours.recv() == value
        assert selector.select(0) == []


def test_end_that_was_closed_while_the_other_was_on_its_way(ctx):
    ours, theirs = ctx.Pipe()
    way, out = ctx.Pipe()
    ours.send("sent before")
    way.send(theirs)
    theirs.close()
    ours.close()
    arrived = out.recv()
    assert arrived.recv() == "sent before"
    with pytest.raises(EOFError):
        arrived.recv()
    with pytest.raises(BrokenPipeError):
        arrived.send(1)


def hold(end, ready):
    ready.set()
    signal.pause()
    end.close()


def kill_holder(ctx, start, node, end):
    ready = ctx.Event()
    process = start(node, hold, end, ready)
    end.close()
    assert ready.wait(60)
    process.kill()
    process.join()


def test_end_of_file_when_the_only_holder_is_killed(ctx, start, node):
    reader, writer = ctx.Pipe(duplex=False)
    writer.send("sent before")
    kill_holder(ctx, start, node, writer)
    assert reader.recv() == "sent before"
    assert wait([reader], 60) == [reader]
    assert reader.poll(60)
    for _ in range(2):
        with pytest.raises(EOFError):
            reader.recv()


def test_end_of_file_for_a_reader_that_waits_when_the_only_holder_is_killed(ctx, start, node):
    reader, writer = ctx.Pipe(duplex=False)
    ready = ctx.Event()
    process = start(node, hold, writer, ready)
    writer.close()
    assert ready.wait(60)
    threading.Timer(0.2, process.kill).start()
    with pytest.raises(EOFError):
        reader.recv()


def test_file_descriptor_is_readable_when_the_only_holder_is_killed(ctx, start, node):
    reader, writer = ctx.Pipe(duplex=False)
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        kill_holder(ctx, start, node, writer)
        assert len(selector.select(60)) == 1
        with pytest.raises(EOFError):
            reader.recv()
        assert len(selector.select(0)) == 1


def test_no_end_of_file_when_one_of_two_holders_is_killed(ctx, start, node):
    ours, theirs = ctx.Pipe()
    start(node, echo, theirs)
    kill_holder(ctx, start, node, theirs)
    ours.send(1)
    assert ours.recv() == 1
    assert not ours.poll(0.05)


def test_broken_pipe_when_the_only_reader_is_killed(ctx, start, node):
    reader, writer = ctx.Pipe(duplex=False)
    kill_holder(ctx, start, node, reader)
    with pytest.raises(BrokenPipeError):
        for number in range(10_000):
            writer.send(number)
