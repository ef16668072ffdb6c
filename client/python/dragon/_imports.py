"""Changes modules when they are imported, so that nobody pays for the import of one that is not used."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

__all__ = ["when_imported"]

_changes: dict[str, Callable[[Any], None]] = {}


def when_imported(name: str, change: Callable[[Any], None]) -> None:
    """Calls `change` with the module of this name: now, or right after its import."""
    present = sys.modules.get(name)
    if present is not None:
        change(present)
        return
    if not _changes:
        sys.meta_path.insert(0, _Finder)
    _changes[name] = change


class _Finder:
    """Finds what the path has, and sees to it that the change follows the import."""

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> Any:
        change = _changes.pop(name, None)
        if change is None:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, change)
        return spec


class _Loader:
    """A loader, and what is to follow. For everything else it is the loader."""

    def __init__(self, loader: Any, change: Callable[[Any], None]) -> None:
        self._loader = loader
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._change(module)
