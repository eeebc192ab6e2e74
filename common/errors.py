"""What a command can end with, beside success."""


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says what would be right."""


class Diverged(Exception):
    """The training loss is not finite."""


def first_line(error):
    """The first line of an error's message; its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
