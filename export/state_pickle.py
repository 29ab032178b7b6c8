"""What PyTorch's pickle of a state dict says, read as a list of opcodes: nothing of it is ever called or imported.

The opcodes are those that torch.save writes (protocol 2, and what protocol 4 writes in their place). A global is a name
in a table or the end of reading. Time and memory are linear in the bytes, which are bounded.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bundle.errors import CheckpointError

MAX_BYTES = 1 << 24
"""Of a pickle: a hundred times a 7B's. A tensor takes about 150 bytes."""
_MAX_OPCODES = 2_000_000
"""About 45 a tensor; 6 s of reading."""
_MAX_TENSORS = 40_000
_STORAGES: Mapping[str, str] = {
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
"""Global to number format, as safetensors calls it."""
_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_PARAMETERS = {"torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"}
_SIZE = "torch Size"
_LEFT_OUT = {"argparse Namespace", "torch device", "__builtin__ set", "builtins set"}
"""Objects that lie beside weights in checkpoints of a training; they are read over."""
_KNOWN = {*_STORAGES, _DICT, _TENSOR, *_PARAMETERS, _SIZE, *_LEFT_OUT}
_PUSHED = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING"),
}
"""Opcodes whose argument is the value."""
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}
_MAX_KEY = 1 << 31
"""Below which a key that is a number must be: larger ones can be made to fall on one place of a table."""


@dataclass(frozen=True)
class Storage:
    """Numbers one behind another in a file of the archive.

    Attributes:
        key: The file's name.
        dtype: As safetensors calls it.
        num: How many numbers.
    """

    key: str
    dtype: str
    num: int


@dataclass(frozen=True)
class StatedTensor:
    """What a pickle says of a tensor; nobody has checked it.

    Attributes:
        storage: Where its numbers are.
        start: The first of them.
        shape: Its sizes.
        strides: Steps along its axes, in numbers.
    """

    storage: Storage
    start: Any
    shape: Any
    strides: Any


@dataclass(frozen=True)
class _Global:
    name: str


def read_pickle(data: bytes) -> Any:
    """Return what a pickle holds: dictionaries, lists, tuples and scalars as they are, tensors as `StatedTensor`.

    Raises:
        CheckpointError: It names a global or an opcode that a state dict has not, is too large, or damaged.
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"its pickle has {len(data)} bytes; at most {MAX_BYTES} are read")
    reader = _Reader()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number >= _MAX_OPCODES:
                raise CheckpointError(f"its pickle has more than {_MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return reader.stack.pop()
            reader.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"its pickle is damaged: {type(error).__name__} {error}") from error
    raise CheckpointError("its pickle ends without a value")


@dataclass
class _Reader:
    """A stack of values, those set aside at marks, and a memo; one step an opcode."""

    stack: list[Any] = field(default_factory=list)
    aside: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    num_tensors: int = 0

    def step(self, name: str, argument: Any) -> None:
        """Do what an opcode says."""
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = [self.stack.pop() for _ in range(count)]
            self.stack.append(tuple(reversed(items)))
        elif name == "GLOBAL":
            self.stack.append(_known(argument))
        elif name not in _IGNORED:
            known = _STEPS.get(name)
            if known is None:
                raise CheckpointError(f"its pickle has the opcode {name}, which no state dict needs; it is not read")
            known(self)

    def mark(self) -> None:
        self.aside.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Return what was pushed since the last mark."""
        items, self.stack = self.stack, self.aside.pop()
        return items

    def make_tuple(self) -> None:
        items = self.marked()
        self.stack.append(tuple(items))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def set_items(self) -> None:
        self._fill(self.marked())

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("items for what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not (type(key) is str or (type(key) is int and abs(key) < _MAX_KEY)):
                raise ValueError(f"a key that is a {type(key).__name__}")
            target[key] = value

    def append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def appends(self) -> None:
        self._extend(self.marked())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("items for what is no list")
        target.extend(items)

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_known(f"{module} {name}"))

    def find_storage(self) -> None:
        kind, storage, key, _, num = self.stack.pop()
        if kind != "storage" or type(key) is not str or type(num) is not int:
            raise ValueError("an object beside the pickle that is no storage")
        self.stack.append(Storage(key, _STORAGES[storage.name], num))

    def reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        self.stack.append(self._made(called.name, arguments))

    def build(self) -> None:
        """Leave out what an object has beside its items: `_metadata` of a state dict, versions of modules."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | _Global):
            raise ValueError("a state for what has none")

    def _made(self, name: str, arguments: Any) -> Any:
        if type(arguments) is not tuple:
            raise ValueError("arguments that are no tuple")
        if name in _LEFT_OUT:
            return _Global(name)
        if name == _DICT and not arguments:
            return {}
        if name == _SIZE:
            (sizes,) = arguments
            if type(sizes) is not tuple:
                raise ValueError("sizes that are no tuple")
            return sizes
        if name in _PARAMETERS and isinstance(arguments[0], StatedTensor):
            return arguments[0]
        if name == _TENSOR:
            return self._tensor(*arguments)
        raise ValueError(f"{name} of {len(arguments)} arguments")

    def _tensor(
        self, storage: Any, start: Any, shape: Any, strides: Any, _: Any, hooks: Any, metadata: Any = None
    ) -> StatedTensor:
        if metadata:  # bits of a conjugate or negated view
            raise CheckpointError("a tensor is a conjugate or negated view, which is not read; save it by .clone()")
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without a storage")
        self.num_tensors += 1
        if self.num_tensors > _MAX_TENSORS:
            raise CheckpointError(f"it holds more than {_MAX_TENSORS} tensors")
        return StatedTensor(storage, start, shape, strides)


def _known(name: str) -> _Global:
    if name not in _KNOWN:
        shown = name[:200].replace(" ", ".")
        if name.startswith("torch ") and name.endswith("Storage"):
            raise CheckpointError(f"it stores numbers as {shown}, which is not read")
        if name.startswith("torch._utils _rebuild_"):
            raise CheckpointError(f"it holds a kind of tensor that is not read: {shown}")
        raise CheckpointError(
            f"it holds code: {shown}; it is not read, and nothing of it was run. Save the weights alone, by "
            "torch.save(model.state_dict(), ...) or as safetensors"
        )
    return _Global(name)


_STEPS: Mapping[str, Callable[[_Reader], None]] = {
    "MARK": _Reader.mark,
    "TUPLE": _Reader.make_tuple,
    "SETITEM": _Reader.set_item,
    "SETITEMS": _Reader.set_items,
    "APPEND": _Reader.append,
    "APPENDS": _Reader.appends,
    "ADDITEMS": _Reader.appends,
    "MEMOIZE": _Reader.memoize,
    "STACK_GLOBAL": _Reader.stack_global,
    "BINPERSID": _Reader.find_storage,
    "REDUCE": _Reader.reduce,
    "NEWOBJ": _Reader.reduce,
    "BUILD": _Reader.build,
    "NONE": lambda reader: reader.stack.append(None),
    "NEWTRUE": lambda reader: reader.stack.append(True),
    "NEWFALSE": lambda reader: reader.stack.append(False),
    "EMPTY_TUPLE": lambda reader: reader.stack.append(()),
    "EMPTY_LIST": lambda reader: reader.stack.append([]),
    "EMPTY_SET": lambda reader: reader.stack.append([]),
    "EMPTY_DICT": lambda reader: reader.stack.append({}),
}
