"""Command lines from frozen dataclasses: each field that `flag` makes is a flag of its name."""

import argparse
import ast
import difflib
import os
import re
from dataclasses import field, fields

from common.errors import InputError
from common.processes import processes
from common.terminal import one_line
from common.version import VERSION, commit_of_suite

LONGEST = 4096  # bytes of a path
OR = " or --"  # between flags of which one is needed
NEAR = 0.75  # how alike a flag and a misspelt one are, see difflib.SequenceMatcher.ratio


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses in one line on standard error, with exit code 2.

    hints: name of a flag that does not exist -> what to use instead, in words, or a flag alone.
    place: what a refusal begins with, where the flags are those of a file.
    """

    place = ""

    def __init__(self, hints=None, **options):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )
        self.hints, self.switches = hints or {}, set()
        self.add_argument(
            "--version",
            action=_Version,
            nargs=0,
            default=argparse.SUPPRESS,
            dest=argparse.SUPPRESS,
            help="print the version of the suite",
        )

    def error(self, message):
        if processes()[0]:
            self.exit(2)  # the first process says it
        name = message.removeprefix("argument ").partition(":")[0].partition("/")[0]
        if message.endswith("expected one argument"):
            message = (
                f"{name} needs True or False: {name}=True"
                if name in self.switches
                else f"{name} needs a value: {name}=..."
            )
        if message.startswith("unrecognized arguments: "):
            words = message.partition(": ")[2].split()
            message = next(filter(None, map(self.hint, words)), message)
        self.exit(2, f"{self.prog}: error: {one_line(self.place + message)}\n")

    def hint(self, word):
        """What to write instead of a word that is no flag; None where nobody knows."""
        given, _, value = word.partition("=")
        name = given.lstrip("-").replace("-", "_").lower()
        flags = {
            option[2:].lower(): option
            for option in self._option_string_actions
            if option.startswith("--")
        }
        if not given.startswith("-"):  # as in epochs=20
            if value and name in flags:
                return f"flags begin with --: {flags[name]}={value}"
            return None
        answers = self.hints | flags
        near = difflib.get_close_matches(name, answers, n=1, cutoff=NEAR)
        if not near:
            return None
        answer = answers[near[0]]
        if answer in flags.values():
            answer = f"did you mean {answer}?"
        return f"there is no {given}: {answer}"

    def parse_args(self, args=None, namespace=None):
        for word in args or ():  # argparse would take it for the end of the flags
            if word.startswith("-") and word.endswith("=--"):
                self.error(f"argument {word[:-3]}: '--' is no value")
        return super().parse_args(args, namespace)

    def add_flags(self, cls):
        """Add the fields of a dataclass that `flag` has made."""
        groups = {}
        for option in made_by_flag(cls):
            options = dict(option.metadata["options"])
            name, names = option.metadata["group"], option.metadata["names"]
            if name not in groups:
                groups[name] = self.add_argument_group(name)
            if not {"type", "choices"} & options.keys():
                options["type"] = text
            if options.get("type") is boolean:
                self.switches.add(f"--{option.name}")
            groups[name].add_argument(f"--{option.name}", *names, default=option.default, **options)


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        commit = commit_of_suite()
        print(f"orthoreg {VERSION}" + (f", commit {commit}" if commit != "unknown" else ""))
        parser.exit()


def flag(group, default, help, *names, shown=None, marks=(), only_with=None, named=None, **options):
    """A dataclass field that is a flag of the same name on the command line.

    names: other names of it. shown: the default in words. marks: what else is to be known of it,
    see `marked`. only_with: the flag, or FLAG=VALUE, without which it does nothing, or several such
    with OR between them. options: those of add_argument. named: two functions of a value: how it
    is written in the names of files, and in words.
    """
    shown = default if shown is None else shown
    help = f"with --{only_with}, {help}" if only_with else help
    return field(
        default=default,
        metadata={
            "group": group,
            "names": names,
            "marks": frozenset(marks),
            "only_with": only_with,
            "named": named,
            "options": {"help": f"{help} (default: {shown})".replace("%", "%%"), **options},
        },
    )


def switch(group, help, **more):
    """A flag that is True or False, and False unless given."""
    return flag(group, False, help, type=boolean, metavar="True|False", **more)


def made_by_flag(cls):
    """The fields of a dataclass that `flag` has made, as a list."""
    return [option for option in fields(cls) if option.metadata]


def given_names(argv, cls):
    """The names of a dataclass's flags that a command line has, however they are called there."""
    words = {word.partition("=")[0] for word in argv if word.startswith("--")}
    words |= {word[:2] for word in argv if word.startswith("-")}
    return {
        option.name
        for option in made_by_flag(cls)
        if words & {f"--{option.name}", *option.metadata["names"]}
    }


def marked(cls, mark):
    """The names of a dataclass's flags that have this mark."""
    return {option.name for option in fields(cls) if mark in option.metadata["marks"]}


def check_needed(cls, args):
    """Raise InputError where a flag is given that does nothing, since another one is not."""
    for option in made_by_flag(cls):
        needed = option.metadata["only_with"]
        if needed and getattr(args, option.name) != option.default:
            if not any(_is_given(args, name) for name in needed.split(OR)):
                raise InputError(f"--{option.name} only works with --{needed}")


def _is_given(args, needed):
    """Whether a flag, or FLAG=VALUE, is given."""
    name, _, value = needed.partition("=")
    given = getattr(args, name)
    return bool(given) and (not value or str(given) == value)


def text(value):
    """An argument type: any text but the empty one, which an unset shell variable leaves."""
    if not value:
        raise argparse.ArgumentTypeError("it is empty")
    return value


def location(value):
    """An argument type: a path, of which a leading ~ is the home folder, as a shell reads it."""
    given = os.path.expanduser(text(value))
    if given.startswith("~"):
        raise argparse.ArgumentTypeError(f"{value!r}: there is no home folder of that name")
    try:
        if "\0" in given or len(os.fsencode(given)) > LONGEST:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} cannot be a path") from None
    return given


def one_of(*values):
    """An argument type: one of some values, in any case."""

    def parse(text):
        for value in values:
            if text.lower() == str(value).lower():
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(map(str, values))}")

    return parse


boolean = one_of(True, False)


def integer(low, high=None):
    """An argument type: an integer from `low` to `high`, both included."""

    def parse(text):
        wanted = f"an integer from {low} " + ("up" if high is None else f"to {high}")
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        value = int(text)
        if not low <= value <= (2**63 - 1 if high is None else high):
            raise argparse.ArgumentTypeError(f"{value} is out of range: give {wanted}")
        return value

    return parse


def number(text):
    """A number in ASCII, as in 0.5 or 1e-3; NaN where the text is none."""
    try:
        return float(text) if text.isascii() and "_" not in text else float("nan")
    except ValueError:
        return float("nan")


def positive(most, or_zero=False):
    """An argument type: a number above 0, or from 0, up to `most`."""

    def parse(text):
        value = number(text)
        if not (0 < value <= most or or_zero and value == 0):
            lowest = "from 0" if or_zero else "above 0,"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {lowest} up to {most:g}")
        return value

    return parse


def patterns(value):
    """An argument type: names with *, separated by commas, in order, as text; False where there are
    none."""
    if value.lower() == "false":
        return False
    names = {text(name.strip()) for name in value.split(",")}
    return ",".join(sorted(names))


def rising(low, high):
    """An argument type: a rising list of integers from `low` to `high`, as a tuple."""

    def parse(text):
        try:
            values = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            values = None
        if (
            not isinstance(values, (list, tuple))
            or not values
            or not all(type(v) is int and low <= v <= high for v in values)
            or any(a >= b for a, b in zip(values, values[1:]))
        ):
            raise argparse.ArgumentTypeError(
                f"{text[:80]!r} is not a rising list of integers from "
                f"{low} to {high}, as in '[10, 50, 80]'"
            )
        return tuple(values)

    return parse
