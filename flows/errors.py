"""Errors that a user can act on; each is shown as one line."""


class FlowError(Exception):
    """Something the user can put right: one line, and the exit code of the command."""

    exit_code = 1


class UsageError(FlowError):
    """Wrong arguments."""

    exit_code = 2


class Killed(Exception):
    """A stage's process was killed from outside; running it again is likely to help."""


class StageFailed(Exception):
    """A stage ended in a way that running it again would repeat."""


class Cancelled(Exception):
    """The flow was cancelled while this stage ran."""
