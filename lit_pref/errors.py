"""Errors in the user's input, shown as one sentence, and the printing of text that data may have written."""


class UserError(Exception):
    """An error that the user can fix: one sentence with place, reason and remedy, shown without a traceback.

    The command line prints the sentence and exits with `exit_code`.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class Diverged(UserError):
    """A loss that is not finite: training cannot continue, and a study counts it as a result."""


class UsageError(UserError):
    """A command line, configuration or combination of parts that cannot run as written."""

    exit_code = 2


def printable(text: str) -> str:
    r"""Return a text with half surrogate pairs, which no console can print and no file can hold, written out.

    >>> printable("a\ud800")
    'a\\ud800'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def visible(text: str) -> str:
    r"""The printable text with control characters as signs, so that data cannot command the terminal it is printed to.

    >>> visible("\x1b]0;title\x07 and a line")
    '␛]0;title␇ and a line'
    """
    return printable(text).translate(_SIGNS)


_SIGNS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "␡"}
_SIGNS |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_SIGNS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # turn text around
