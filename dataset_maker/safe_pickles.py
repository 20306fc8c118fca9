"""Pickles of plain values and NumPy arrays, read without the module `pickle`: nothing that one contains can run.

A pickle is a program, and `pickle.load` calls whatever function it names. Here its instructions are interpreted one by
one: only those that such values need exist, and of functions only five of NumPy's, as functions of this file that
build arrays from bytes whose number must match their shape. Protocols 2 to 5. Leaves out objects of classes.
"""

import math
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from errors import InputError

MAX_INSTRUCTIONS = 1000  # a sample of the released makers has about 150
LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
)
NEW: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple},
}


class _Built:
    """A data type or an array, which a pickle first creates empty and then fills."""

    def __init__(self, value: np.dtype | np.ndarray | np.generic | None) -> None:
        self.value = value


class _Name:
    """A name of NumPy's that only stands as an argument."""


def _dtype(text: str, align: bool, copy: bool) -> _Built:
    """Stand for `numpy.dtype`: numbers only, above all no objects."""
    if not re.fullmatch(r"[<>=|]?(f[248]|[iu][1248]|b1)", text):
        raise InputError(f"an array of the data type {text[:20]!r}, but only numbers are read")
    return _Built(np.dtype(text))


def _array(raw: bytes, dtype: _Built, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Return bytes as an array. Raises InputError if their number does not match."""
    if not isinstance(dtype.value, np.dtype):
        raise InputError("an array without a data type")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.value.itemsize != len(raw):
        raise InputError(f"an array of another shape than its {len(raw)} bytes have")
    flat = np.frombuffer(raw, dtype.value) if raw else np.empty(0, dtype.value)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _frombuffer(raw: bytes, dtype: _Built, shape: tuple[int, ...], order: str) -> _Built:
    """Stand for `numpy.core.numeric._frombuffer`."""
    return _Built(_array(raw, dtype, shape, order))


def _scalar(dtype: _Built, raw: bytes) -> _Built:
    """Stand for `numpy.core.multiarray.scalar`."""
    return _Built(_array(raw, dtype, (), "C")[()])


def _reconstruct(kind: _Name, shape: tuple[int, ...], code: bytes) -> _Built:
    """Stand for `numpy.core.multiarray._reconstruct`: an array that is filled later."""
    return _Built(None)


def _encode(text: str, encoding: str) -> bytes:
    """Stand for `_codecs.encode`, by which protocol 2 writes bytes."""
    return text.encode("latin-1")


_OLD_AND_NEW = ("numpy.core", "numpy._core")
KNOWN: dict[str, Any] = {
    **{"numpy ndarray": _Name(), "numpy dtype": _dtype, "_codecs encode": _encode},
    **{f"{core}.multiarray _reconstruct": _reconstruct for core in _OLD_AND_NEW},
    **{f"{core}.multiarray scalar": _scalar for core in _OLD_AND_NEW},
    **{f"{core}.numeric _frombuffer": _frombuffer for core in _OLD_AND_NEW},
}


def _known(name: str) -> Any:
    """Return what a pickle means by `module name`. Raises InputError for all but the few that are known."""
    if name not in KNOWN:
        raise InputError(f"it names {name[:80].replace(' ', '.')!r}, which is not let in: nothing of it was run")
    return KNOWN[name]


def _fill(built: _Built, state: tuple[Any, ...]) -> None:
    """Give a data type its byte order, or an array its values."""
    if isinstance(built.value, np.dtype):
        _, order, subtype, names, fields, *_ = state
        if subtype is not None or names is not None or fields is not None:
            raise InputError("an array of records, but only numbers are read")
        built.value = built.value.newbyteorder(order)
    else:
        _, shape, dtype, fortran, raw = state
        built.value = _array(raw, dtype, shape, "F" if fortran else "C")


class _Machine:
    """The state of an interpreted pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self, number: int) -> list[Any]:
        """Take the last `number` values off the stack."""
        if number > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise InputError("an instruction without its values")
        values = self.stack[len(self.stack) - number :]
        del self.stack[len(self.stack) - number :]
        return values

    def pop_marked(self) -> list[Any]:
        """Take everything since the last mark off the stack."""
        values = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return values

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction. Raises InputError for one that plain values and arrays do not need."""
        stack, memo = self.stack, self.memo
        if name in LITERALS:
            stack.append(argument)
        elif name in NEW:
            stack.append(NEW[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self.pop(int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_marked()))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self.put_in(self.pop_marked() if name[-1] == "S" else self.pop(1 if name == "APPEND" else 2), name)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_known(argument if name == "GLOBAL" else " ".join(self.pop(2))))
        elif name == "REDUCE":
            function, arguments = self.pop(2)
            stack.append(function(*arguments))
        elif name == "BUILD":
            (state,) = self.pop(1)
            _fill(stack[-1], state)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise InputError(f"the instruction {name}, which plain values and arrays do not need")

    def put_in(self, values: list[Any], name: str) -> None:
        """Put values into the list or, keys and values in turn, into the dictionary at the stack's end."""
        target = self.stack[-1]
        if not isinstance(target, list if name.startswith("APPEND") else dict):
            raise InputError(f"the instruction {name} on something else")
        if isinstance(target, list):
            target += values
        elif len(values) % 2 or not all(isinstance(key, str) for key in values[::2]):
            raise InputError("a dictionary whose keys are not texts")  # a hash of nested tuples may take for ever
        else:
            target.update(zip(values[::2], values[1::2], strict=True))


def _finished(value: Any) -> Any:
    """Return a value, or a list's or tuple's values, with arrays in the place of what they were built in."""
    if isinstance(value, (list, tuple)):
        return type(value)(item.value if isinstance(item, _Built) else item for item in value)
    return value.value if isinstance(value, _Built) else value


def loads(data: bytes) -> dict[str, Any]:
    """Read a pickled dictionary of text -> number, text, list, tuple or array; its arrays may be read-only.

    Raises InputError, with a reason that belongs behind the file's name, for everything else.
    """
    machine = _Machine()
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_INSTRUCTIONS:
                raise InputError(f"more than {MAX_INSTRUCTIONS} instructions, too many for one sample")
            machine.step(instruction.name, argument)
        (values,) = machine.stack
        return {key: _finished(value) for key, value in values.items()}
    except InputError as error:
        raise InputError(f"no pickle of a plain sample: {error}") from None
    except Exception as error:  # broken bytes end in anything from IndexError to UnicodeDecodeError
        raise InputError(f"broken or no pickle ({type(error).__name__})") from None
