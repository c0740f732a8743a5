"""Errors in the user's input, shown as one sentence."""


class UserError(Exception):
    """An error that the user can fix: one sentence with place, reason and remedy, shown without a traceback.

    The command line prints the sentence and exits with `exit_code`.
    """

    exit_code = 1

    def __str__(self) -> str:
        # Names that the user's files give may hold half a surrogate pair, which no console can print.
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class UsageError(UserError):
    """A command line, configuration or combination of parts that cannot run as written."""

    exit_code = 2
