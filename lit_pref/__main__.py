"""`python -m lit_pref`: one command of the table, its help, and the exit code."""

import os
import sys
from typing import NoReturn


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with 0 (done), 1 (refused input) or 2 (an impossible command line or configuration).

    If the reader of the output ends first, as in `check | head`, the exit code is 141, as of other programs.

    Args:
        arguments: the command line; None takes that of this process.
    """
    from lit_pref.commands.table import program_help
    from lit_pref.errors import UserError
    from lit_pref.printing import say

    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        say(program_help().rstrip("\n"))
        sys.exit(0 if words else 2)
    try:
        from lit_pref.cli import main as run

        run(words, relaunchable=arguments is None)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        say(f"lit_pref: {error}", error=True)
        sys.exit(error.exit_code)
    sys.exit(0)


if __name__ == "__main__":
    main()
