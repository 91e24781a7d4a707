"""Reading the pickles of CIFAR's Python version without the module pickle, which would run any code in them.

A pickle is a program for a small stack machine. This machine knows the instructions in CIFAR's files, and in copies
that Python 3 wrote; it calls nothing and imports nothing. It builds dictionaries, lists, tuples, text, bytes, numbers,
and arrays of bytes, never of objects.

Source: `pickletools` in Python's standard library, which reads and describes the instructions.
"""

import pickletools
from typing import Any, NamedTuple

import numpy as np

_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE",
    "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME"}

# The names in numpy's pickles, with its current and its former modules; `encode` is how Python 3 writes bytes.
_ARRAY, _DTYPE, _BYTES, _KIND = "array", "dtype", "bytes", "kind of array"
_NAMES = {
    ("numpy", "ndarray"): _KIND,
    ("numpy", "dtype"): _DTYPE,
    ("numpy.core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _ARRAY,
    ("_codecs", "encode"): _BYTES,
}


class _Name(NamedTuple):
    """A function or class that a pickle refers to."""

    meaning: str


class _Made:
    """An array or a dtype between the two instructions that build it: the call and the state."""

    def __init__(self, meaning: str, arguments: tuple[Any, ...]) -> None:
        self.meaning, self.arguments = meaning, arguments
        self.array: np.ndarray | None = None


def read_pickle(content: bytes) -> Any:
    """Read a CIFAR pickle; text of Python 2, which may be bytes, becomes a str with a character for each byte.

    Raises: ValueError for an instruction or a name that no such file needs, or if it is damaged.
    """
    machine = _Machine()
    for instruction, argument, _ in pickletools.genops(content):
        if instruction.name == "STOP":
            break
        try:
            machine.run(instruction.name, argument)
        except (IndexError, KeyError, TypeError, OverflowError) as error:  # the stack does not hold what it needs
            raise ValueError(f"the instruction {instruction.name} makes no sense there") from error
    (result,) = machine.stack if len(machine.stack) == 1 else (None,)
    return _finished(result)


class _Machine:
    """The stack, the positions of marks on it, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._after_mark()))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("APPEND", "APPENDS"):
            values = [stack.pop()] if name == "APPEND" else self._after_mark()
            _expect(stack[-1], list).extend(map(_finished, values))
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._after_mark()
            keys = [_text(key) for key in values[::2]]
            _expect(stack[-1], dict).update(zip(keys, map(_finished, values[1::2]), strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = argument.split(" ") if name == "GLOBAL" else (stack.pop(-2), stack.pop())
            if (module, attribute) not in _NAMES:
                raise ValueError(f"it asks for {module:.40}.{attribute:.40}, which no data needs")
            stack.append(_Name(_NAMES[module, attribute]))
        elif name in ("REDUCE", "BUILD"):
            argument = _expect(stack.pop(), tuple)
            stack.append(_called(stack.pop(), argument) if name == "REDUCE" else _built(stack.pop(), argument))
        elif name not in _NOTHING:
            raise ValueError(f"it uses the instruction {name}, which no data needs")

    def _after_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values


def _called(name: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the result of a call, without calling anything."""
    meaning = _expect(name, _Name).meaning
    if meaning == _BYTES:
        return _expect(arguments[0], str).encode("latin-1")
    if meaning not in (_ARRAY, _DTYPE) or (meaning == _DTYPE and arguments[0] not in ("u1", b"u1")):
        raise ValueError("it calls something that no data needs, such as an array of anything but bytes")
    return _Made(meaning, arguments)


def _built(made: Any, state: tuple[Any, ...]) -> Any:
    """Set the state of an array or dtype: (version, shape, dtype, whether in Fortran order, content)."""
    if _expect(made, _Made).meaning == _ARRAY:
        _, shape, dtype, fortran_order, content = state
        if _expect(dtype, _Made).meaning != _DTYPE:
            raise TypeError("no dtype")
        content = content.encode("latin-1") if isinstance(content, str) else _expect(content, bytes)
        sizes = tuple(_expect(size, int) for size in _expect(shape, tuple))
        if min(sizes, default=0) < 0:
            raise ValueError(f"an array has the shape {sizes}")
        made.array = np.frombuffer(content, np.uint8).reshape(sizes, order="F" if fortran_order else "C")
    return made


def _finished(value: Any) -> Any:
    """Return a value for the reader: for `_Made`, the array itself."""
    return value.array if isinstance(value, _Made) else value


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else _expect(key, str)


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value
