"""Pickles read without `pickle`: exact values of every protocol, and nothing that one asks for is ever run."""

import builtins
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_maker import safe_pickles
from errors import InputError

PROTOCOLS = (2, 3, 4, 5)
RANDOM = np.random.default_rng(0)
VALUES = {
    "slice": RANDOM.standard_normal((4, 30))[:, 5:25],
    "whole": RANDOM.standard_normal((4, 30)),
    "fortran": np.asfortranarray(RANDOM.standard_normal((3, 4))),
    "big_endian": np.arange(6, dtype=">f4"),
    "half": np.array([1.5, np.nan, np.inf], dtype=np.float16),
    "bytes": np.arange(4, dtype=np.uint8),
    "truth": np.array([True, False]),
    "empty": np.empty((0, 3)),
    "point": np.array(3.0),
    "scalar": np.float64(2.5),
    "whole_scalar": np.int64(-7),
    "number": 1,
    "large": 1 << 70,
    "text": "Größe",
    "list": [1.0, None, np.float64(3)],
    "tuple": (1, 2, 3, 4, 5),
}


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("old_names", [False, True], ids=["numpy._core", "numpy.core"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_and_arrays_come_back_exactly(protocol: int, old_names: bool) -> None:
    values = {name: value for name, value in VALUES.items() if name != "empty" or protocol > 2}
    data = pickle.dumps(values, protocol)
    new, old = b"numpy._core", b"numpy.core"
    if protocol < 4:
        data = data.replace(new if old_names else old, old if old_names else new)
    elif old_names != (old in data):  # names are preceded by their length, and frames by theirs
        other = {True: (new, old), False: (old, new)}[old_names]
        for module in (b".multiarray", b".numeric"):
            names = [bytes([len(name + module)]) + name + module for name in other]
            data = data.replace(*names)
        frame = struct.unpack_from("<Q", data, 3)[0] + len(data) - len(pickle.dumps(values, protocol))
        data = data[:3] + struct.pack("<Q", frame) + data[11:]
    assert (old in data) == old_names
    found = safe_pickles.loads(data)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert type(found[name]) is type(value)
        np.testing.assert_array_equal(found[name], value)
        if isinstance(value, (np.ndarray, np.generic)):
            assert found[name].dtype == value.dtype


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_function_named_in_a_pickle_is_refused_and_not_called(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    np.save(tmp_path / "array.npy", np.arange(3))
    calls = {
        "system": Calls(os.system, f"touch {trace}"),
        "eval": Calls(eval, f"open({str(trace)!r}, 'w')"),
        "getattr": Calls(getattr, os, "getcwd") if protocol > 3 else Calls(builtins.getattr, "text", "upper"),
        "numpy.load": Calls(np.load, str(tmp_path / "array.npy")),
        "fromfile": Calls(np.fromfile, str(tmp_path / "array.npy")),
        "open": Calls(open, str(trace), "w"),
        "touch": Calls(Path.touch, trace),
        "nested": [{"deep": (Calls(os.system, f"touch {trace}"),)}],
    }
    for name, call in calls.items():
        try:
            data = pickle.dumps({"X": np.zeros(3), "y": call}, protocol)
        except (TypeError, pickle.PicklingError):
            continue  # this protocol cannot even write it
        with pytest.raises(InputError, match=r"names '.*', which is not let in"):
            safe_pickles.loads(data)
        assert not trace.exists(), name
    pickle.loads(pickle.dumps(calls["system"], protocol))
    assert trace.exists()  # so it would have been seen


class Plain:
    """An object of a class."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Plain(), "Plain"),
        (np.array([{}, None], dtype=object), "data type 'O8'"),
        (np.array(["a"]), "data type 'U1'"),
        (np.zeros(2, dtype=[("a", "f8")]), "data type 'V8'"),
        (np.datetime64("2020-01-01"), "data type 'M8'"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "MaskedArray|_mareconstruct"),
        ({1, 2}, "EMPTY_SET|__builtin__.set|builtins.set"),
        (1 + 2j, "complex"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_objects_and_other_types_are_refused_by_name(protocol: int, value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        safe_pickles.loads(pickle.dumps({"X": value}, protocol))


def binary(*parts: bytes) -> bytes:
    """A handmade pickle of protocol 4."""
    return pickle.PROTO + b"\x04" + b"".join(parts) + pickle.STOP


TEXT = pickle.SHORT_BINUNICODE + b"\x01a"
ARRAY = pickle.dumps(np.arange(4.0).reshape(2, 2), 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2], 4),
        pickle.dumps({"a": 1}, 0),
        pickle.dumps({"a": np.arange(100.0)}, 5)[:-40],
        binary(pickle.EMPTY_DICT, TEXT),
        binary(pickle.SETITEM),
        binary(pickle.TUPLE),
        binary(pickle.MARK, pickle.TUPLE3),
        binary(pickle.EMPTY_DICT, pickle.MARK, pickle.POP_MARK),
        binary(pickle.EMPTY_LIST, pickle.MARK, TEXT, TEXT, pickle.SETITEMS),
        binary(pickle.EMPTY_DICT, pickle.MARK, TEXT, pickle.SETITEMS),
        binary(pickle.BINGET, b"\x07"),
        binary(pickle.EXT1, b"\x01"),
        binary(TEXT, pickle.BINPERSID),
        binary(pickle.PERSID, b"a\n"),
        binary(pickle.NEXT_BUFFER),
        binary(TEXT, TEXT, pickle.REDUCE),
        binary(pickle.EMPTY_DICT, pickle.NONE, pickle.BUILD),
        binary(pickle.GLOBAL, b"numpy\ndtype\n", pickle.EMPTY_DICT, pickle.BUILD),
        binary(pickle.GLOBAL, b"numpy\ndtype\n", pickle.EMPTY_TUPLE, pickle.NEWOBJ),
        binary(pickle.GLOBAL, b"numpy\nndarray\n", pickle.EMPTY_TUPLE, pickle.REDUCE),
        b"\x80\x02}U\x01a" + ARRAY[2:].replace(b"K\x02K\x02\x86", b"K\x03K\x02\x86")[:-1] + b"s.",
        b"\x80\x02}U\x01a"
        + ARRAY[2:].replace(b"K\x02K\x02\x86", b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86")[:-1]
        + b"s.",
    ],
    ids=lambda data: str(data[:16]),
)
def test_whatever_is_no_plain_dictionary_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(InputError) as error:
        safe_pickles.loads(data)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


SELF_APPENDED = [pickle.MARK + pickle.BINGET + b"\x00" + pickle.APPENDS] * 20_000
NESTED = [pickle.MEMOIZE, pickle.NONE, pickle.TUPLE2] * 60


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (binary(pickle.BYTEARRAY8, struct.pack("<Q", 1 << 45), b"x"), "broken"),
        (binary(pickle.BINBYTES8, struct.pack("<Q", 1 << 45), b"x"), "broken"),
        (binary(pickle.EMPTY_LIST, pickle.LONG_BINPUT, struct.pack("<I", 0xFFFFFFF0)), "broken"),
        (binary(pickle.LONG4, struct.pack("<i", 0x7FFFFFFF), b"x"), "broken"),
        (binary(pickle.EMPTY_LIST, pickle.MEMOIZE, *SELF_APPENDED), "more than 1000 instructions"),
        (binary(pickle.EMPTY_DICT, pickle.EMPTY_TUPLE, *NESTED, TEXT, b"s"), "keys are not texts"),
    ],
    ids=["bytearray", "bytes", "memo", "number", "instructions", "tuples as keys"],
)
def test_a_small_pickle_takes_little_memory_and_says_why_it_is_refused(data: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=reason):
            safe_pickles.loads(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(60)  # a hash of these would never end
def test_a_dictionary_with_nested_tuples_as_keys_is_refused_before_it_is_hashed() -> None:
    doubled = b"".join(pickle.MEMOIZE + pickle.BINGET + bytes([index]) + pickle.TUPLE2 for index in range(60))
    data = binary(pickle.EMPTY_TUPLE, doubled, pickle.MEMOIZE, pickle.EMPTY_DICT, pickle.BINGET, b"\x3c", TEXT, b"s")
    with pytest.raises(InputError, match="keys are not texts"):
        safe_pickles.loads(data)


def test_flipped_bytes_end_in_values_or_in_one_line() -> None:
    generator = np.random.default_rng(1)
    whole = pickle.dumps({"X": np.arange(40.0), "y": 1, "z": [np.float64(1)]}, 4)
    for _ in range(300):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(0, 256)
        try:
            assert isinstance(safe_pickles.loads(bytes(data)), dict)
        except InputError as error:
            assert len(str(error)) < 250
