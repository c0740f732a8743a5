"""The two ways in which a user's input is refused."""


class UserError(Exception):
    """Something the user can mend: one plain sentence that names place, reason and remedy; shown without a traceback.

    The command line prints the sentence and ends with `exit_code`.
    """

    exit_code = 1


class UsageError(UserError):
    """A command line, configuration or combination of parts that cannot be run as written."""

    exit_code = 2
