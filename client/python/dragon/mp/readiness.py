"""File descriptors that are readable while a channel is, for selectors and event loops."""

from __future__ import annotations

import os
import threading
from multiprocessing import util

from dragon import _native
from dragon._errors import DragonError

__all__ = ["Readiness"]

_MESSAGE, _GONE, _CLOSED = range(3)


class Readiness:
    """An eventfd, and the thread that makes it readable when the channel is, or who could send is gone. Only who asks for one
    pays for it."""

    def __init__(self, channel: _native.Channel, senders: bytes) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._channel = channel
        self._senders = senders
        self._senders_gone = False
        self._look = threading.Event()
        self._look.set()
        self._closed = _native.Event()
        self._thread = threading.Thread(target=self._watch, name="DragonReadiness", daemon=True)
        self._thread.start()

    def look_again(self) -> None:
        """Something was received: the channel may be empty now."""
        if self._channel.poll(0) == 0 and not self._senders_gone:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                pass  # Somebody else received meanwhile, and took it back.
            self._look.set()

    def close(self) -> None:
        """Ends the thread and closes the descriptor."""
        self._closed.set()
        self._look.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        os.close(self.fd)

    def _watch(self) -> None:
        try:
            members = _native.Set(3)
            members.add(self._channel.descriptor, _MESSAGE)
            members.add(self._senders, _GONE)
            members.add(self._closed.descriptor, _CLOSED)
            while not self._senders_gone:
                self._look.wait()
                self._look.clear()
                ready = members.wait()
                if _CLOSED in ready:
                    return
                self._senders_gone = _GONE in ready
                os.eventfd_write(self.fd, 1)
        except DragonError as error:
            util.debug("watching a channel: %s", error)
            self._senders_gone = True
            os.eventfd_write(self.fd, 1)  # Whoever receives is told what happened to it.
