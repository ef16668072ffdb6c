"""Where processes run: the nodes of the runtime, and which one the next process goes to."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections import namedtuple

from dragon import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_node: contextvars.ContextVar[int | None] = contextvars.ContextVar("dragon_node", default=None)


class Node(namedtuple("Node", ("index", "host", "cpus", "memory"))):
    """A node of the runtime.

    `index` counts from 0, where the head program runs; `host` is its host name, and several nodes may be on one host;
    `cpus` and `memory` (bytes) are what the runtime was granted on it.
    """

    __slots__ = ()


def nodes() -> list[Node]:
    """The nodes of the runtime, by index."""
    return [Node(*node) for node in _native.nodes()]


def node() -> Node:
    """The node that this process runs on."""
    return nodes()[_native.info()["node"]]


@contextlib.contextmanager
def on_node(index: int) -> Iterator[None]:
    """Processes that are started inside go to the node with this index::

        with dragon.on_node(2):
            process.start()

    Outside, the policy of the runtime decides (round robin, unless DRAGON_PLACEMENT says something else). The workers of
    a Pool are always spread over all nodes, or over all others when DRAGON_PLACEMENT is `remote`.
    """
    count = _native.info()["nodes"]
    if not 0 <= index < count:
        raise ValueError(f"there is no node {index}: the runtime has {count}, counted from 0")
    token = _node.set(index)
    try:
        yield
    finally:
        _node.reset(token)


def worker_nodes() -> list[Node]:
    """The nodes that the workers of pools are spread over: all, unless DRAGON_PLACEMENT wants children on other nodes only."""
    everywhere = nodes()
    if os.environ.get("DRAGON_PLACEMENT") != "remote" or len(everywhere) == 1:
        return everywhere
    here = _native.info()["node"]
    return [node for node in everywhere if node.index != here]


def default_node() -> int | None:
    """The node chosen by an enclosing :func:`on_node`."""
    return _node.get()
