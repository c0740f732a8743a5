"""`python -m lit_pref`: help without heavy imports, tools without a Trainer, and the four Trainer commands."""

import sys
from typing import NoReturn

HELP = """usage: python -m lit_pref COMMAND [options]

Preference optimisation of language models on pairs whose strength is known.

commands that run a Trainer (every option can be set in a file and overridden on the command line):
  fit        train a policy:           python -m lit_pref fit --config configs/quickstart.yaml
  validate   metrics on held-out pairs: python -m lit_pref validate --config runs/NAME/config.yaml --ckpt_path FILE
  test       the same under the name of test
  predict    one record a pair, as Parquet, into the run folder

tools:
  check      look at data and models before a run: python -m lit_pref check --config FILE; see check --help
  score      compute what the reference store lacks: python -m lit_pref score --config FILE; see score --help
  select     write the training pairs that data.selection keeps: select --config FILE --out FILE; see select --help
  export     a checkpoint as a Hugging Face folder: python -m lit_pref export --ckpt_path FILE --out FOLDER

  COMMAND --help                        all options of a command
  COMMAND --model.objective.help MMPO   the arguments of a class
  fit --config FILE --print_config      the configuration with every default, without running it
  fit --config FILE --model.objective DPO --model.objective.beta 0.05    another class, with its own defaults
  fit --config FILE --ckpt_path last    go on where a killed run stopped
"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 refused input, 2 a command line or configuration that cannot be run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        sys.exit(0 if arguments else 2)
    from lit_pref.errors import UserError

    try:
        if arguments[0] == "export":
            from lit_pref.commands.export import main as run
        elif arguments[0] == "check" and not {"-h", "--help"}.isdisjoint(arguments):
            from lit_pref.commands.check import main as run
        elif arguments[0] == "score" and not {"--list", "--prune", "-h", "--help"}.isdisjoint(arguments):
            from lit_pref.commands.score import main as run
        elif arguments[0] == "select" and not {"-h", "--help"}.isdisjoint(arguments):
            from lit_pref.commands.select import main as run
        else:
            from lit_pref.cli import main as run
        run(arguments)
    except UserError as error:
        print(f"lit_pref: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


if __name__ == "__main__":
    main()
