"""What the pickle of a PyTorch tensor file says, read without running any of it.

A pickle is a program. Here only the steps are known of which ``torch.save`` makes tensors by name
and plain values; the only things that they can call are the three that describe a tensor. What they
make are names, numbers, dicts and lists of our own, so a file can neither run code nor change
anything in the process.
"""

from __future__ import annotations

import pickletools
from typing import Any, NamedTuple

MOST_BYTES = 8 << 20  # of the program; its values take about a hundred times as much
MOST_STEPS = 2_000_000


class Global(NamedTuple):
    """The name of a class or function that the file refers to."""

    module: str
    name: str


class Storage(NamedTuple):
    """Where numbers lie: ``kind`` such as "FloatStorage", ``key`` of the archive, ``size``."""

    kind: str
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage; sizes, offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
PARAMETER = Global("torch._utils", "_rebuild_parameter")
ORDERED = Global("collections", "OrderedDict")
_MARK = object()
_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERAL = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def described(program: bytes) -> Any:
    """The dicts, lists, plain values and `Tensor` that a pickle describes.

    Raises ``ValueError`` for a step, a class or a call that no file of tensors has, for more than
    `MOST_STEPS` steps, and whatever a damaged program makes of the stack (``IndexError``).
    """
    if len(program) > MOST_BYTES:
        raise ValueError(f"it describes its tensors in {len(program)} bytes, at most {MOST_BYTES}")
    machine = _Machine()
    for number, (step, argument, _) in enumerate(pickletools.genops(program)):
        if number > MOST_STEPS:
            raise ValueError(f"it describes its tensors in more than {MOST_STEPS} steps")
        if step.name == "STOP":
            return machine.pop()
        machine.run(step.name, argument)
    raise ValueError("its description of the tensors does not end")


class _Machine:
    """The stack and the memo of a pickle's program."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """What lies on top, which is no mark."""
        if (value := self.stack.pop()) is _MARK:
            raise ValueError("its description of the tensors is out of order")
        return value

    def since_mark(self) -> list[Any]:
        """Everything above the last mark, which is taken off as well."""
        out = []
        while (value := self.stack.pop()) is not _MARK:
            out.append(value)
        return out[::-1]

    def run(self, name: str, argument: Any) -> None:
        """One step."""
        stack = self.stack
        if name in _LITERAL:
            stack.append(argument)
        elif name in _CONSTANT:
            stack.append(_CONSTANT[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name in _TUPLES:
            stack.append(tuple([self.pop() for _ in range(_TUPLES[name])][::-1]))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            value = self.pop()
            stack.append(value)
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = value
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        else:
            self._change(name, argument)

    def _change(self, name: str, argument: Any) -> None:
        """The steps that fill a container, name a class, or call it."""
        if name in ("SETITEM", "SETITEMS"):
            given = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.since_mark()
            into = _of_kind(self.stack[-1], dict)
            for key, value in zip(given[::2], given[1::2], strict=True):
                if not isinstance(key, (str, int)):
                    raise ValueError(f"it names a value {type(key).__name__}, not by a word")
                into[key] = value
        elif name in ("APPEND", "APPENDS"):
            given = [self.pop()] if name == "APPEND" else self.since_mark()
            _of_kind(self.stack[-1], list).extend(given)
        elif name == "GLOBAL":
            self.stack.append(_known(Global(*argument.split(" ", 1))))
        elif name == "STACK_GLOBAL":
            last, module = self.pop(), self.pop()
            self.stack.append(_known(Global(str(module), str(last))))
        elif name == "BINPERSID":
            self.stack.append(_storage(self.pop()))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            self.stack.append(_call(function, arguments))
        elif name == "BUILD":  # the versions that a state dict carries along
            self.pop()
            _of_kind(self.stack[-1], dict)
        else:
            raise ValueError(f"it takes the step {name}, which no file of tensors needs")


def _of_kind(value: Any, kind: type) -> Any:
    """A container that the program made. Raises ``ValueError`` for anything else."""
    if type(value) is not kind:
        raise ValueError(f"it fills a {type(value).__name__} as if it were a {kind.__name__}")
    return value


def _known(found: Global) -> Global:
    """Raises ``ValueError`` for the name of anything that describes no tensor."""
    storage = found.module == "torch" and found.name.endswith("Storage")
    if found not in (REBUILD, PARAMETER, ORDERED) and not storage:
        raise ValueError(f"it holds a {found.module}.{found.name}, expected tensors only")
    return found


def _storage(given: Any) -> Storage:
    """What a persistent name says of a storage."""
    if not isinstance(given, tuple) or len(given) != 5 or given[0] != "storage":
        raise ValueError("it refers to something that is no storage")
    _, kind, key, _, size = given
    if not isinstance(kind, Global) or not isinstance(key, str):
        raise ValueError(f"it names a storage {key!r} of {kind!r}")
    return Storage(kind.name, key, _count(size))


def _call(function: Any, arguments: Any) -> Any:
    """The three calls that there are."""
    if not isinstance(arguments, tuple):
        raise ValueError("it calls something without arguments")
    if function == REBUILD and len(arguments) >= 4 and isinstance(arguments[0], Storage):
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise ValueError("it describes a tensor whose sizes are no tuple")
        return Tensor(
            storage, _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides))
        )
    if function == PARAMETER and arguments and isinstance(arguments[0], Tensor):
        return arguments[0]
    if function == ORDERED and arguments == ():
        return {}
    raise ValueError(f"it calls {function!r:.80} with what describes no tensor")


def _count(value: Any) -> int:
    """A size. Raises ``ValueError`` for what is none."""
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"it says {value!r:.40} where a size is expected")
    return value
