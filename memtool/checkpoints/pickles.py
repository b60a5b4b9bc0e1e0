"""Pickles as inert values: nothing in them is imported, called or built.

A pickle is a program that names functions and calls them. `read` interprets it as plain data: a
name becomes a `Name`, and whatever would be called becomes a `Call`, which remembers that and no
more. Which of them are tensors, `rebuilding` knows.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

# An operation of one byte may make an object of 200; a network needs some thirty for each tensor.
MAX_OPERATIONS = 10_000_000


@dataclass(frozen=True)
class Name:
    """A function or class that a pickle names, such as `collections.OrderedDict`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """What a pickle would make: by which `function` with which `arguments`, in which `state` it
    would put it, and which `items` (of a dict) and `elements` (of a list or set) it would add.

    `function` is a `Name` in an honest pickle. All of it is from the file, and may be anything.
    """

    function: Any
    arguments: Any
    states: list[Any] = field(default_factory=list)
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    @property
    def state(self) -> Any:
        """The last state that it would be put in; None if there is none."""
        return self.states[-1] if self.states else None


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """What a pickle says is stored outside of it: the storage of a tensor."""

    id: Any


class _Reader:
    """The stack and the memo of one pickle; each method is what an operation does to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.references: list[Reference] = []

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def to_mark(self) -> list[Any]:
        """Take what is on the stack above the last mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def drop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def remember(self, index: int | None = None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.push(self.memo[index])

    def call(self, count: int = 1) -> None:
        """The function below `count` arguments, the last of which are keywords if there are two."""
        arguments = [self.stack.pop() for _ in range(count)]
        self.push(Call(self.stack.pop(), arguments[-1]))

    def call_marked(self) -> None:
        function, *arguments = self.to_mark()
        self.push(Call(function, tuple(arguments)))

    def call_named(self, name: str) -> None:
        self.push(Call(_named(name), tuple(self.to_mark())))

    def name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(Name(str(module), str(name)))

    def refer(self, id: Any) -> None:
        """What is stored elsewhere: a storage or, in old files, a class together with its code."""
        match id:
            case ("module", function, *_):
                self.push(function)
            case _:
                self.references.append(Reference(id))
                self.push(self.references[-1])

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Call):
            target.states.append(state)

    def add_elements(self, values: list[Any]) -> None:
        match self.stack[-1]:
            case Call(elements=elements) | list(elements):
                elements.extend(values)
            case set(members):
                members.update(map(_key, values))
            case other:
                raise ValueError(f"elements for a {type(other).__name__}")

    def add_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Call) else target
        if not isinstance(items, dict):
            raise ValueError(f"items for a {type(target).__name__}")
        items.update(_paired(values))


def _named(name: str) -> Name:
    """The name as pickletools gives it: module and name, separated by a space."""
    module, _, function = name.partition(" ")
    return Name(module, function)


def _paired(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(map(_key, values[::2]), values[1::2], strict=True))


def _key(value: Any) -> Any:
    """A key or a member of a set: what is not simple gets the hash of an object, since that of a
    tuple in tuples in tuples can exhaust the stack."""
    simple = isinstance(value, str | bytes | int | float | Name | Call | None)
    return value if simple else Call(None, value)


Operation = Callable[[_Reader, Any], None]

# Operations whose argument is a value, and those that always mean the same value.
VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(VALUES, lambda reader, value: reader.push(value)),
    "NONE": lambda reader, _: reader.push(None),
    "NEWTRUE": lambda reader, _: reader.push(True),
    "NEWFALSE": lambda reader, _: reader.push(False),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_TUPLE": lambda reader, _: reader.push(()),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_SET": lambda reader, _: reader.push(set()),
    "MARK": lambda reader, _: reader.mark(),
    "POP": lambda reader, _: reader.drop(),
    "POP_MARK": lambda reader, _: reader.to_mark().clear(),
    "DUP": lambda reader, _: reader.push(reader.stack[-1]),
    "LIST": lambda reader, _: reader.push(reader.to_mark()),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.to_mark())),
    "DICT": lambda reader, _: reader.push(_paired(reader.to_mark())),
    "FROZENSET": lambda reader, _: reader.push(frozenset(map(_key, reader.to_mark()))),
    "TUPLE1": lambda reader, _: reader.push((reader.stack.pop(),)),
    "TUPLE2": lambda reader, _: reader.push((reader.stack.pop(), reader.stack.pop())[::-1]),
    "TUPLE3": lambda reader, _: reader.push(
        (reader.stack.pop(), reader.stack.pop(), reader.stack.pop())[::-1]
    ),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Reader.remember),
    "MEMOIZE": lambda reader, _: reader.remember(),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Reader.recall),
    "APPEND": lambda reader, _: reader.add_elements([reader.stack.pop()]),
    "APPENDS": lambda reader, _: reader.add_elements(reader.to_mark()),
    "ADDITEMS": lambda reader, _: reader.add_elements(reader.to_mark()),
    "SETITEM": lambda reader, _: reader.add_items([reader.stack.pop(), reader.stack.pop()][::-1]),
    "SETITEMS": lambda reader, _: reader.add_items(reader.to_mark()),
    "GLOBAL": lambda reader, name: reader.push(_named(name)),
    "STACK_GLOBAL": lambda reader, _: reader.name(),
    **dict.fromkeys(
        ("EXT1", "EXT2", "EXT4"), lambda reader, code: reader.push(Name("copyreg", str(code)))
    ),
    "INST": _Reader.call_named,
    "OBJ": lambda reader, _: reader.call_marked(),
    "NEWOBJ": lambda reader, _: reader.call(),
    "NEWOBJ_EX": lambda reader, _: reader.call(2),
    "REDUCE": lambda reader, _: reader.call(),
    "BUILD": lambda reader, _: reader.build(),
    "PERSID": _Reader.refer,
    "BINPERSID": lambda reader, _: reader.refer(reader.stack.pop()),
    **dict.fromkeys(("PROTO", "FRAME"), lambda reader, _: None),
}


def read(file: IO[bytes]) -> tuple[Any, list[Reference]]:
    """The value of the pickle that begins where `file` is, which is then at its end, and all
    references in it.

    It is made of numbers, strings, bytes, the builtin containers, `Name`, `Call` and `Reference`;
    containers may hold themselves. Raises ValueError, IndexError, KeyError or TypeError if it is
    broken.
    """
    reader = _Reader()
    for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if number == MAX_OPERATIONS:
            raise ValueError(f"it has more than {MAX_OPERATIONS:,} operations")
        if operation.name == "STOP":
            break
        if operation.name not in OPERATIONS:  # buffers outside of the pickle
            raise ValueError(f"it has a {operation.name}")
        OPERATIONS[operation.name](reader, argument)
    return reader.stack.pop(), reader.references
