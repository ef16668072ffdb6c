"""The programs in examples/, on one node and on three."""

import re

import pytest
from programs import EXAMPLES, run

NODES = pytest.mark.parametrize("nodes", [1, 3])


@NODES
def test_hello_world(dragon_command, nodes):
    ended = run(dragon_command, [EXAMPLES / "hello_world.py", 2 * nodes], nodes=nodes)
    assert ended.code == 0, ended.text()
    greetings = re.findall(r"^hello from node (\d+) \(.*\), process (\d+): (\d+) squared is (\d+)$", ended.out, re.M)
    assert len(greetings) == 2 * nodes, ended.text()
    assert [int(number) ** 2 for _, _, number, _ in greetings] == [int(square) for *_, square in greetings]
    # Every worker has one task, and every node two workers.
    assert len({(node, pid) for node, pid, _, _ in greetings}) == 2 * nodes, ended.text()
    assert {int(node) for node, *_ in greetings} == set(range(nodes)), ended.text()


@NODES
def test_ring(dragon_command, nodes):
    ended = run(dragon_command, [EXAMPLES / "ring.py", 2 * nodes, 20], nodes=nodes)
    assert ended.code == 0, ended.text()
    assert f"{40 * nodes} steps in 20 rounds through {2 * nodes} processes on {nodes} nodes" in ended.out, ended.text()


@NODES
def test_pipeline(dragon_command, nodes):
    ended = run(dragon_command, [EXAMPLES / "pipeline.py"], nodes=nodes)
    assert ended.code == 0, ended.text()
    assert "1000 items, all right" in ended.out, ended.text()
