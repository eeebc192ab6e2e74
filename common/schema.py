"""Whether a plain value, as JSON or a checkpoint holds it, is of a type.

    check(dict[str, list[float]], value, "history")     # ValueError: history.base[3] is ...

Types: bool, int, float (an int will do), str, None, object (anything), list[T], dict[str, T],
T | U, TypedDict classes (further keys are let through), and classes, for their instances.
"""

import reprlib
import types
from typing import Union, get_args, get_origin, get_type_hints, is_typeddict

LARGEST = 3.5e38  # of any number, as of float32: beyond it, infinite or NaN is nonsense


def check(kind, value, name):
    """Raise ValueError, which names the part of `value` that is not of type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        _check_any(arguments, value, name)
    elif origin is list:
        _require(type(value) in (list, tuple), value, name, "a list")
        for i, item in enumerate(value):
            check(arguments[0], item, f"{name}[{i}]")
    elif origin is dict:
        _require(type(value) is dict, value, name, "a dict")
        for key, item in value.items():
            _require(type(key) is str, key, f"a key of {name}", "text")
            check(arguments[1], item, f"{name}.{key}")
    elif is_typeddict(kind):
        _require(type(value) is dict, value, name, "a dict")
        for key, wanted in get_type_hints(kind).items():
            if key in value:
                check(wanted, value[key], f"{name}.{key}")
            elif key in kind.__required_keys__:
                raise ValueError(f"{name}.{key} is missing")
    elif kind in (int, float):
        _require(
            type(value) in (int, kind) and abs(value) <= LARGEST,
            value,
            name,
            "an integer" if kind is int else "a finite number",
        )
    elif kind in (bool, str, dict, list):
        _require(type(value) is kind, value, name, kind.__name__)
    elif kind is not object:
        _require(isinstance(value, kind), value, name, f"a {kind.__name__}")


def _check_any(kinds, value, name):
    """One of some types, of which at most one is not None."""
    if value is None and type(None) in kinds:
        return
    problems = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return check(kind, value, name)
            except ValueError as error:
                problems.append(error)
    raise problems[0]


def check_fields(cls, values, name):
    """`check` those entries of a dict that are fields of the dataclass `cls`, by their types."""
    for field, kind in get_type_hints(cls).items():
        if field in values:
            check(kind, values[field], f"{name}.{field}" if name else field)


def _require(fits, value, name, wanted):
    if not fits:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not {wanted}")
