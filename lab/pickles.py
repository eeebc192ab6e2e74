"""What a pickle would build, counted by its instructions before anything is built.

A few bytes may stand for endless work: a tuple that holds the same tuple twice, which holds the
same tuple twice, and so on, is a tree of 2^45 items to whoever hashes it, and no signal ends that.
Here each value is only its size, so that such files are refused at once.
"""

import pickletools

import torch

DEPTH = 50  # of tuples in tuples; hashing recurses
ITEMS = 2_000_000  # in one value, as a tree
WORK = 20_000_000  # items that are hashed or copied, in all
LONGEST = 2**29  # bytes of a pickle; tensors are not in it
ENDLESS = "it holds the same things within each other so often that reading it would never end"
LETTERS = 64  # of a text that count as one item

# What torch.save lets a file call: with tensors, containers, and the bytes of NumPy's numbers.
CALLED = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "builtins.set",
    "__builtin__.set",
    "builtins.complex",
    "__builtin__.complex",
}
REBUILD, TYPED, ENCODE = (
    "torch._utils._rebuild_",
    "torch._tensor._rebuild_from_type_v2",
    "_codecs.encode",
)


class Refused(ValueError):
    """A pickle is not read; the message says what it does, with "it" for the file."""


class _Value:
    """A value that would be built. size: its items, as a tree; depth: of tuples in it; what: a
    text, a number, the name of a global, or the items of a tuple."""

    __slots__ = "size", "depth", "what"

    def __init__(self, size=1, depth=0, what=None):
        self.size, self.depth, self.what = size, depth, what


class _Global(_Value):
    """A function or a class, by its name."""

    __slots__ = ()


class Count:
    """Reads pickles, and counts. bytes: of the tensors that they name.

    allowed: names of what they may call, beside CALLED. Raises Refused where a pickle would build
    too much, or calls what torch.save does not write, and other errors where it is damaged.
    """

    def __init__(self, allowed=()):
        self.called, self.work, self.storages = CALLED | set(allowed), 0, {}
        self.steps = {
            code.name: getattr(self, f"_{code.name.lower()}", None) for code in pickletools.opcodes
        }

    @property
    def bytes(self):
        return sum(self.storages.values())

    def read(self, file):
        """Read one pickle, to its end."""
        self.stack, self.marks, self.memo = [], [], {}
        for code, argument, place in pickletools.genops(file):
            if place > LONGEST:
                raise Refused(f"it has more than {LONGEST // 2**20} MiB beside its tensors")
            if step := self.steps[code.name]:
                step(argument)
            elif code.name in _LEAVES:
                self.stack.append(_leaf(argument))
            elif code.name not in _NOTHING:
                raise Refused(f"it has a pickle's {code.name}, which torch.save does not write")

    def _spend(self, items):
        self.work += items
        if items > ITEMS or self.work > WORK:
            raise Refused(ENDLESS)

    def _since_mark(self):
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _push_tuple(self, items):
        size, depth = (
            1 + sum(item.size for item in items),
            1 + max((item.depth for item in items), default=0),
        )
        if size > ITEMS or depth > DEPTH:
            raise Refused(ENDLESS)
        self.stack.append(_Value(size, depth, items))

    def _grow(self, items):
        container = self.stack[-1]
        container.size += sum(item.size for item in items)
        container.size = min(container.size, ITEMS + 1)  # it may hold itself

    def _call(self, function, arguments):
        name = function.what if isinstance(function, _Global) else None
        self._spend(arguments.size)
        items = arguments.what if isinstance(arguments.what, list) else []
        if name == ENCODE:
            if len(items) != 2 or items[1].what not in ("latin1", "latin-1"):
                raise Refused("it encodes text as something else than latin1")
        elif name == TYPED:  # calls its first argument with its third
            if len(items) < 3 or items[0].what == TYPED:
                raise Refused(f"it calls {name}, but not as torch.save writes it")
            self._call(items[0], items[2])
        elif str(name).startswith(REBUILD):
            return _Value()
        elif name not in self.called:
            raise Refused(f"it calls {name}, which no state dict needs")
        return _Value(arguments.size)

    # ------------------------------------------------------------------- instructions, by name

    def _mark(self, _):
        self.marks.append(len(self.stack))

    def _empty_tuple(self, _):
        self._push_tuple([])

    def _tuple(self, _):
        self._push_tuple(self._since_mark())

    def _tuple1(self, _):
        self._push_tuple([self.stack.pop()])

    def _tuple2(self, _):
        second, first = self.stack.pop(), self.stack.pop()
        self._push_tuple([first, second])

    def _tuple3(self, _):
        third, second, first = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._push_tuple([first, second, third])

    def _append(self, _):
        item = self.stack.pop()
        self._grow([item])

    def _appends(self, _):
        self._grow(self._since_mark())

    def _setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self._spend(key.size)
        self._grow([key, value])

    def _setitems(self, _):
        items = self._since_mark()
        for key in items[::2]:
            self._spend(key.size)
        self._grow(items)

    def _global(self, name):
        self.stack.append(_Global(what=name.replace(" ", ".", 1)))

    def _reduce(self, _):
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(function, arguments))

    _newobj = _reduce

    def _build(self, _):
        state = self.stack.pop()
        self._spend(state.size)
        self._grow([state])

    def _binpersid(self, _):
        _, kind, key, _, count = (item.what for item in self.stack.pop().what[:5])
        dtype = getattr(getattr(torch, str(kind).rpartition(".")[2], None), "dtype", torch.uint8)
        if type(count) is not int or count < 0:
            raise Refused("it names a tensor of no size")
        self.storages[key] = max(count * dtype.itemsize, self.storages.get(key, 0))
        self.stack.append(_Value())

    def _binput(self, place):
        self.memo[place] = self.stack[-1]

    def _binget(self, place):
        self.stack.append(self.memo[place])

    _long_binput, _long_binget = _binput, _binget


def _leaf(value):
    if isinstance(value, (str, bytes)):
        return _Value(1 + len(value) // LETTERS, what=value)
    return _Value(what=value)


_NOTHING = {"PROTO", "STOP"}
_LEAVES = {
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINSTRING",
    "EMPTY_LIST",
    "EMPTY_DICT",
    "EMPTY_SET",
}
