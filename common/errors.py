"""What a command can end with, beside success."""


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says what would be right."""


class Diverged(Exception):
    """The training loss is not finite."""
