"""What `import dragon` does to multiprocessing."""

import inspect
import multiprocessing

import pytest

import dragon


def test_version():
    assert dragon.__version__.count(".") == 2


def test_start_method_is_registered(ctx):
    assert "dragon" in multiprocessing.get_all_start_methods()
    assert ctx.get_start_method() == "dragon"
    assert ctx.get_context() is ctx


def test_signatures_stay():
    assert str(inspect.signature(multiprocessing.Queue)) == "(maxsize=0)"
    assert str(inspect.signature(multiprocessing.Pool)) == (
        "(processes=None, initializer=None, initargs=(), maxtasksperchild=None)"
    )


def test_cpu_count_is_that_of_all_nodes(ctx):
    assert ctx.cpu_count() == sum(node.cpus for node in dragon.nodes())


def test_nodes():
    nodes = dragon.nodes()
    assert [node.index for node in nodes] == list(range(len(nodes)))
    assert dragon.node() == nodes[0]
    assert all(node.host and node.cpus > 0 and node.memory > 0 for node in nodes)


def test_a_node_that_is_not_there():
    with pytest.raises(ValueError, match="there is no node 1000"):
        with dragon.on_node(1000):
            pass


def test_error_numbers_are_the_protocol_s():
    codes = {kind.code: kind for kind in vars(dragon).values() if isinstance(kind, type) and issubclass(kind, dragon.DragonError)}
    assert codes[16] is dragon.NoRuntimeError
    assert codes[13] is dragon.NodeDownError
    assert issubclass(codes[1], TimeoutError)
