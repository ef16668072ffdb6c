"""What the tests inside a runtime share."""

import multiprocessing
import os
import signal
import time

import pytest

import dragon


@pytest.fixture
def ctx():
    return multiprocessing.get_context("dragon")


def pytest_generate_tests(metafunc):
    """`node`: a test runs for a node of its own and for the one farthest away."""
    if "node" in metafunc.fixturenames:
        last = len(dragon.nodes()) - 1
        metafunc.parametrize("node", sorted({0, last}))


@pytest.fixture
def start(ctx):
    """Starts a process on a node; kills what still runs at the end of the test."""
    started = []

    def start(node, target, *args, **options):
        process = ctx.Process(target=target, args=args, **options)
        with dragon.on_node(node):
            process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


@pytest.fixture
def stopped(start):
    """Starts a process that waits for something of this node; returns it when it waits, if it does so on another node, and
    has been stopped."""

    def parked():
        return dragon._native.stats()["requests_parked"]

    def stopped(node, target, *args):
        before = parked()
        process = start(node, target, *args)
        while node != 0 and parked() == before:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGSTOP)
        return process

    return stopped
