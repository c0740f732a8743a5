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


def visible(text: str) -> str:
    r"""The text with control characters as signs, so that data cannot command the terminal it is printed to.

    >>> visible("\x1b]0;title\x07 and a line")
    '␛]0;title␇ and a line'
    """
    return text.translate(_SIGNS)


_SIGNS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "␡"}
_SIGNS |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_SIGNS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # turn text around
