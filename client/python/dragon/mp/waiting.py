"""`multiprocessing.connection.wait` for connections, queues and processes of any node, beside file descriptors."""

from __future__ import annotations

import os
import threading
from multiprocessing import util

from dragon import _native
from dragon._errors import DragonError
from dragon._hook import original

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["wait"]


def wait(objects: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """Those of the objects that are ready, as soon as there are some; none when the time is over.

    An object of ours has a method `_wait_for`: the descriptors of what it becomes ready with, or True when it is ready
    now. Everything else is a file descriptor or has one.
    """
    objects = list(objects)
    wanted = [getattr(one, "_wait_for", None) for one in objects]
    descriptors = [find() if find is not None else None for find in wanted]
    ready = {at for at, descriptor in enumerate(descriptors) if descriptor is True}
    channels = {at: name for at, name in enumerate(descriptors) if isinstance(name, tuple)}
    files = {at: objects[at] for at, find in enumerate(wanted) if find is None}
    with _Members(channels) as members:
        if ready:
            timeout = 0
        if not files:
            ready.update(members.wait(timeout))
        else:
            ready.update(_wait_for_both(members, files, timeout))
    return [one for at, one in enumerate(objects) if at in ready]


class _Members:
    """Objects of the runtime to wait for, by their places in the list; and one more, with which to end the wait."""

    def __init__(self, channels: dict[int, tuple[bytes, ...]]) -> None:
        self._gone: set[int] = set()
        self._end: _native.Event | None = None
        self._end_token = 1 << 32
        self._set = _native.Set(sum(map(len, channels.values())) + 1)
        for at, descriptors in channels.items():
            try:
                for descriptor in descriptors:
                    self._set.add(descriptor, at)
            except DragonError:
                self._gone.add(at)  # Ready: an operation on it says what happened to it.

    def __enter__(self) -> _Members:
        return self

    def __exit__(self, *error: Any) -> None:
        self._set.close()

    def wait(self, timeout: float | None) -> set[int]:
        ready = set(self._set.wait(0 if self._gone else timeout)) | self._gone
        ready.discard(self._end_token)
        return ready

    def can_end(self) -> None:
        self._end = _native.Event()
        self._set.add(self._end.descriptor, self._end_token)

    def end(self) -> None:
        if self._end is not None:
            self._end.set()


def _wait_for_both(members: _Members, files: dict[int, Any], timeout: float | None) -> set[int]:
    wait_for_files = original("wait")
    places: dict[Any, list[int]] = {}
    for at, file in files.items():
        places.setdefault(file, []).append(at)

    def ready_files(ready: Iterable[Any]) -> set[int]:
        return {at for file in ready if file is not wake for at in places[file]}

    # What is ready already needs no thread.
    wake = None
    ready = members.wait(0) | ready_files(wait_for_files(list(places), 0))
    if ready or timeout is not None and timeout <= 0:
        return ready
    wake = os.eventfd(0, os.EFD_CLOEXEC)
    found: set[int] = set()

    def watch() -> None:
        try:
            found.update(members.wait(None))
        except DragonError as error:
            util.debug("waiting for several objects: %s", error)
        os.eventfd_write(wake, 1)

    members.can_end()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        ready = ready_files(wait_for_files([*places, wake], timeout))
    finally:
        members.end()
        watcher.join()
        os.close(wake)
    return ready | found
