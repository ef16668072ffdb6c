"""Objects to messages and back, without a channel."""

import collections
import functools
import pickle
import struct

import pytest

from dragon import _serialize
from dragon._serialize import dump_parts, dumps, loads


def joined(parts):
    """What arrives when the parts are sent as one message."""
    return b"".join(parts) if type(parts) is list else bytes(parts)


class Custom:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    def method(self):
        return self.value


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**100), 1.5, 2j, "", "ä", b"", b"x" * 100_000, (1, [2, {3: {4}}]), Custom([1]), collections.OrderedDict(a=1), len],
    ids=lambda value: type(value).__name__,
)
def test_round_trip(value):
    assert loads(bytes(dumps(value))) == value
    assert loads(joined(dump_parts(value))) == value


def test_reducers_of_multiprocessing_are_used():
    assert loads(bytes(dumps(Custom(3).method)))() == 3
    assert loads(bytes(dumps(functools.partial(Custom, 4))))() == Custom(4)


class Memory:
    """Pickles its memory out of band, as arrays do."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return Memory, (pickle.PickleBuffer(self.data),)

    def __eq__(self, other):
        return bytes(self.data) == bytes(other.data)


def test_large_buffers_become_parts():
    value = [Memory(bytearray(_serialize.LARGE)), "small", Memory(bytearray(b"x" * (_serialize.LARGE + 1)))]
    parts = dump_parts(value)
    assert type(parts) is list
    message = joined(parts)
    assert message[0] == 0
    assert loads(message) == value


def test_what_was_made_of_parts_can_be_written_to():
    value = loads(joined(dump_parts(pickle.PickleBuffer(bytearray(_serialize.LARGE)))))
    value = memoryview(value)
    assert not value.readonly
    value[0] = 1


def test_small_buffers_stay_in_the_pickle():
    assert bytes(dump_parts(Memory(bytearray(_serialize.LARGE - 1))))[0] == 0x80


@pytest.mark.parametrize("end", [10, 23, 24, 40, 64, 1000, -1])
def test_a_message_cut_short_is_refused(end):
    message = joined(dump_parts(Memory(bytearray(_serialize.LARGE))))
    with pytest.raises((pickle.UnpicklingError, struct.error)):
        loads(message[:end])


def test_bytes_after_the_end_do_not_matter():
    assert loads(bytes(dumps((1, 2))) + bytes(8)) == (1, 2)
    large = Memory(bytearray(_serialize.LARGE))
    assert loads(joined(dump_parts(large)) + bytes(8)) == large
