"""Dragon: processes, channels and queues over all nodes of a job.

``import dragon`` adds the start method "dragon" to `multiprocessing`::

    import dragon
    import multiprocessing

    if __name__ == "__main__":
        multiprocessing.set_start_method("dragon")
        with multiprocessing.Pool() as pool:      # one worker for each CPU of the job, on all its nodes
            print(pool.map(work, range(1000)))

Nothing happens in the runtime until the first object is made or asked about. A program that was started without a runtime
(``python prog.py``) gets one of its own then, on this machine, which is gone when the program has ended.
"""

from dragon import _errors, _hook, mp
from dragon._attach import attach
from dragon._errors import *  # noqa: F403  (the exceptions)
from dragon._native import version as _version
from dragon._placement import Node, node, nodes, on_node
from dragon._rank import local_rank, rank, size

__version__: str = _version()

_hook.register(mp.context_instance)

# Without TimeoutError: `from dragon import *` must not hide the built-in one.
__all__ = [name for name in _errors.__all__ if name != "TimeoutError"]
__all__ += ["Node", "attach", "local_rank", "mp", "node", "nodes", "on_node", "rank", "size"]
