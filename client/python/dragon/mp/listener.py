"""Listeners and clients that find each other on any node.

A listener is a channel on its node; its address, a string, names the channel. A client makes a pipe, sends one end of it
there and keeps the other: what follows goes through the pipe, past the listener's process.
"""

from __future__ import annotations

from multiprocessing import connection

from dragon import _native
from dragon._errors import DragonError
from dragon._hook import ADDRESS
from dragon._serialize import dumps, loads
from dragon.mp.connection import Pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dragon.mp.connection import Connection

__all__ = ["ChannelListener", "client", "listen"]

#: Clients that wait to be accepted, before the next one waits for room.
_BACKLOG = 128


class ChannelListener:
    """What `multiprocessing.connection.Listener` does its work with."""

    def __init__(self, address: str | None) -> None:
        if address and address != ADDRESS:
            raise OSError(f"{address!r} belongs to another listener; give no address, to get one that is free")
        self._channel = _native.Channel(_BACKLOG)
        self._address = ADDRESS + self._channel.descriptor.hex()
        self._last_accepted: str | None = None

    def accept(self) -> Connection:
        """The next client's connection."""
        try:
            return loads(self._channel.receive())
        except (DragonError, ValueError) as error:
            raise OSError("the listener is closed") from error

    def close(self) -> None:
        """Turns away who waits, and who comes."""
        try:
            waiting = []
            while (client := self._channel.receive(0)) is not None:
                waiting.append(loads(client))
            self._channel.destroy()
            for client in waiting:
                client.close()
        except DragonError:
            pass  # The runtime is ending, and with it everything.
        self._channel.close()


def _connect(address: str) -> Connection:
    """A connection to the listener with this address."""
    try:
        channel = _native.Channel.attach(bytes.fromhex(address.removeprefix(ADDRESS)))
        ours, theirs = Pipe()
        channel.send(dumps(theirs))
    except (DragonError, ValueError) as error:
        raise ConnectionRefusedError(f"nobody listens at {address}: {error}") from error
    theirs.close()
    return ours


def listen(listener: Any, address: str | None, authkey: bytes | None) -> None:
    """Makes a `multiprocessing.connection.Listener` one that listens at a channel."""
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError("authkey should be a byte string")
    listener._listener = ChannelListener(address)
    listener._authkey = authkey


def client(address: str, authkey: bytes | None) -> Connection:
    """What `multiprocessing.connection.Client` does for an address of ours."""
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError("authkey should be a byte string")
    ours = _connect(address)
    if authkey is not None:
        try:
            connection.answer_challenge(ours, authkey)
            connection.deliver_challenge(ours, authkey)
        except BaseException:
            ours.close()
            raise
    return ours
