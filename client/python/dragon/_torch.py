"""Tensors of PyTorch over several nodes.

`torch.multiprocessing` sends file descriptors of shared memory, which mean nothing on another node. Where the runtime has
several, a tensor that nobody asked to share, or that is in a batch of a `DataLoader`, travels as arrays of NumPy do.
"""

from __future__ import annotations

from dragon import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


def by_value(reducer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What reduces an object of torch's, in place of torch's own reducer."""
    import torch
    from torch.utils.data import get_worker_info

    def reduce(obj: Any) -> Any:
        is_batch = get_worker_info() is not None
        if _native.info()["nodes"] == 1 or obj.layout is not torch.strided or obj.is_cuda or obj.is_shared() and not is_batch:
            return reducer(obj)
        if type(obj) is torch.Tensor and not obj.requires_grad:
            try:
                return torch.from_numpy, (obj.numpy(),)
            except (RuntimeError, TypeError):
                pass  # Of a type that NumPy does not have, or NumPy is not there.
        return obj.__reduce_ex__(2)

    return reduce
