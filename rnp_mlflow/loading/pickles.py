"""Read a pickle as `torch.save` writes it, with a machine of our own: it makes plain values, and imports nothing.

A name in the file stands for what the table `known` has under it, or the file is refused. What a file can cost is
bounded: every instruction, and all that a call copies, is taken from one number of steps.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import unpack
from typing import Any, Protocol

STEPS = 16_000_000  # some 10 seconds, at most 700 MB; an `attack_result.pt` takes 230 for each image
CALL = 10  # more for a call, beside one for each entry that it copies
CONTAINER = 3  # more for what takes more memory
LONGEST = 32 << 20  # bytes of a text; an array beside the weights is one
KEY, LARGEST = 500, 2**60  # characters of a key; integers from here on may share their hash with others


class Refused(Exception):
    """The pickle is not read; the message says why."""


class Stream(Protocol):
    """What a pickle is read from."""

    def read(self, count: int, /) -> bytes:
        """Return the next bytes, fewer at the end."""

    def readline(self, limit: int, /) -> bytes:
        """Return the bytes up to the end of the line, at most `limit`."""


@dataclass(frozen=True)
class Maker:
    """What a file may call: a function of ours that takes the file's arguments."""

    build: Callable[..., Any]


class Stateful(Protocol):
    """A stand-in whose state is in the file."""

    def __setstate__(self, state: Any) -> None: ...


class Machine:
    """Reads the pickles of one file.

    known: name in the file → `Maker`, or a value. stored: makes a storage from its description. stateful: the types
    that take a state.
    """

    def __init__(self, known: Mapping[str, Any], stored: Callable[[Any], Any], stateful: tuple[type[Stateful], ...]):
        self.known, self.stored, self.stateful, self.left = known, stored, stateful, STEPS

    def load(self, stream: Stream) -> Any:
        """Read the next pickle of a stream.

        Raises:
            Refused: it names something that is not known, or would cost too much.
            Exception: it is broken, in any way.
        """
        self.stream, self.read = stream, stream.read
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}
        while (code := self.read(1)) != b".":
            self.spend(1)
            OPERATIONS[code](self)
        return self.stack.pop()

    def spend(self, steps: int) -> None:
        """Take steps from those that are left."""
        self.left -= steps
        if self.left < 0:
            raise Refused("is refused: to read what it holds beside its weights would take too many steps")

    def since_mark(self) -> list[Any]:
        """Return what came since the last mark."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def take(self, count: int) -> bytes:
        """Read so many bytes of a value."""
        found = self.read(count) if count <= LONGEST else b""
        if len(found) != count:
            raise ValueError("a value is cut off, or too long")
        return found

    def container(self, new: Any) -> None:
        self.spend(CONTAINER)
        self.stack.append(new)

    def mark(self) -> None:
        self.spend(CONTAINER)
        self.below.append(self.stack)
        self.stack = []

    def get(self, width: int) -> None:
        self.stack.append(self.memo[int.from_bytes(self.take(width), "little")])

    def put(self, width: int) -> None:
        self.spend(1)
        self.memo[int.from_bytes(self.take(width), "little")] = self.stack[-1]

    def tuple(self) -> None:
        items = self.since_mark()
        self.stack.append(tuple(items))

    def last(self, count: int) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def text(self) -> None:
        self.stack.append(str(self.take(unpack("<I", self.take(4))[0]), "utf-8", "surrogatepass"))

    def short_text(self) -> None:  # of Python 2
        self.stack.append(str(self.take(self.take(1)[0]), "utf-8"))

    def name(self) -> None:
        module, name = (self.stream.readline(200).rstrip(b"\n").decode() for _ in range(2))
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full not in self.known:
            raise Refused(f"is refused: it would have to run {full} to load (a whole pickled model, or an object in "
                          "addition to the weights)")  # fmt: skip
        self.stack.append(self.known[full])

    def call(self) -> None:
        arguments, maker = self.stack.pop(), self.stack.pop()
        if type(maker) is not Maker or type(arguments) is not tuple:
            raise ValueError("a call of what is not a function, or without a tuple")
        self.spend(CALL + sum(len(each) for each in arguments if isinstance(each, (str, bytes, list, dict, tuple))))
        self.stack.append(maker.build(*arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, self.stateful):
            target.__setstate__(state)
        elif type(target) is not OrderedDict:  # a state dict's own state is of no use
            raise ValueError("a state of what has none")

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("an entry of what is not a list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise ValueError("an entry of what is not a mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    def storage(self) -> None:
        self.stack.append(self.stored(self.stack.pop()))


def plain_key(key: Any) -> Any:
    """Return the key, or its text if it is a number or a tuple of plain values, whose hashes a file could choose.

    Raises:
        Refused: it is too long.
        ValueError: it is anything else.
    """
    parts = key if type(key) is tuple and len(key) <= 8 else (key,)
    if not all(type(part) in (str, int, float, bool, type(None)) for part in parts):
        raise ValueError("a key that is not a plain value")
    if any(len(part) > KEY for part in parts if type(part) is str):
        raise Refused(f"is refused: a name in it is longer than {KEY} characters")
    if type(key) in (tuple, float) or (type(key) is int and abs(key) >= LARGEST):
        return repr(key)
    return key


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(value)


OPERATIONS: dict[bytes, Callable[[Machine], None]] = {
    b"(": Machine.mark,
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b")": _constant(()),
    b"]": lambda m: m.container([]),
    b"}": lambda m: m.container({}),
    b"K": lambda m: m.stack.append(m.take(1)[0]),
    b"M": lambda m: m.stack.append(unpack("<H", m.take(2))[0]),
    b"J": lambda m: m.stack.append(unpack("<i", m.take(4))[0]),
    b"\x8a": lambda m: m.stack.append(int.from_bytes(m.take(m.take(1)[0]), "little", signed=True)),
    b"G": lambda m: m.stack.append(unpack(">d", m.take(8))[0]),
    b"X": Machine.text,
    b"U": Machine.short_text,
    b"t": Machine.tuple,
    b"\x85": lambda m: m.last(1),
    b"\x86": lambda m: m.last(2),
    b"\x87": lambda m: m.last(3),
    b"h": lambda m: m.get(1),
    b"j": lambda m: m.get(4),
    b"q": lambda m: m.put(1),
    b"r": lambda m: m.put(4),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.since_mark()),
    b"s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    b"u": lambda m: m.set_items(m.since_mark()),
    b"c": Machine.name,
    b"R": Machine.call,
    b"\x81": Machine.call,  # a new object of a class, whose stand-in is made by a call
    b"b": Machine.build,
    b"Q": Machine.storage,
    b"\x80": lambda m: m.stack.extend(m.take(1)[1:]),  # the protocol's number
}
