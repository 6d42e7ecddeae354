"""What goes wrong for a user: one line, and the exit code that says whose turn it is."""


class StageError(Exception):
    """A failure that the user can act on; its text is one line: what, where, what is allowed.

    `exit_code` 2 means a wrong parameter or argument, 3 an input that is missing or damaged.
    """

    exit_code = 1


class ParameterError(StageError):
    """A parameter or argument that is unknown, of the wrong type or out of range."""

    exit_code = 2


class InputError(StageError):
    """An input file that is missing, damaged or not what its name promises."""

    exit_code = 3
