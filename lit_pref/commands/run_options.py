"""The options of a run as a command receives them: checked first, and built when the command needs the run."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pref.config_files import refuse_mistakes
from lit_pref.errors import UsageError
from lit_pref.hints import nearest_names, stray_word, unknown_option
from lit_pref.option_split import values_of, without_options

if TYPE_CHECKING:
    from lit_pref.run.run import Run

TOP_LEVEL = (
    "config",
    "seed_everything",
    "trainer",
    "model",
    "data",
    "run_dir",
    "testbed",
    "stop_at_step",
    "print_summary",
    "ckpt_path",
    "weights_only",
    "verbose",
    "print_config",
    "help",
)
"""The first parts of all options of a run. They are listed because building the parser imports torch; a test compares
them."""

GROUPS = ("trainer", "model", "data", "testbed")
"""Those that have options below them."""

CONSTRUCTORS = {
    "model": ("modules/preference.py", "PreferenceModule"),
    "data": ("data/datamodule.py", "PreferenceDataModule"),
}
"""The file and the class whose constructor gives the second parts of the options of `model` and `data`."""


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, as typed after those of a command.

    Args:
        command: the name of the command.
        arguments: the options.
        relaunchable: whether this process was started by `python -m lit_pref` with these options, so that its command
            line can start further processes of the same run.
        own_options: names of the command's own options, which are suggested for a misspelt one.
    """

    command: str
    arguments: tuple[str, ...]
    relaunchable: bool = False
    own_options: tuple[str, ...] = ()

    @property
    def configs(self) -> list[str]:
        """The configuration files, in their order."""
        return values_of(self.arguments, "-c", "--config")

    def check(self) -> None:
        """Refuse options from which no run could be built, without importing torch.

        Raises:
            UsageError: an option does not exist, a file is missing or has a mistake, or there is neither a file nor an
                objective.
        """
        self.refuse_unknown()
        names = self._names()
        if {"-h", "--help"} & {*names, *self.arguments} or self.asks_for_help_of_a_class:
            return
        if self.arguments and not self.arguments[0].startswith("-"):
            raise UsageError(stray_word(self.arguments[0]))
        for word, before in zip(self.arguments, ("", *self.arguments), strict=False):
            name, _, value = word.partition("=")
            if value == "None" or (word == "None" and before.startswith("--")):
                raise UsageError(f"{name if value else before} None: None is a text here; write null for nothing")
        refuse_mistakes(self.configs)
        if not self.configs and not any(name.startswith("--model.objective") for name in names):
            raise UsageError("missing: --model.objective; give it in a file (--config FILE) or as an option")

    def refuse_unknown(self) -> None:
        """Refuse an option that does not exist.

        Raises:
            UsageError: an option is neither one of the command nor one of a run.
        """
        for name in self._names():
            self._refuse_unknown(name.removeprefix("--"))

    @property
    def asks_for_help_of_a_class(self) -> bool:
        """Whether an option such as `--model.objective.help MMPO` is among the arguments."""
        return any(name.endswith(".help") for name in self._names())

    def _names(self) -> list[str]:
        return [word.partition("=")[0].rstrip("+") for word in self.arguments if word.startswith("--")]

    def _refuse_unknown(self, name: str) -> None:
        first, dot, rest = name.partition(".")
        known = [n for n in TOP_LEVEL if n != "verbose" or self.command in ("validate", "test")]
        if first not in known:
            if owners := [group for group, where in CONSTRUCTORS.items() if first in _parameters(*where)]:
                raise UsageError(unknown_option(name, [f"{group}.{name}" for group in owners]))
            # An own option first: on a tie, a guess is more likely to be right.
            guesses = [*self.own_options, *known] if not dot else [name for name in known if name in GROUPS]
            nearest = nearest_names(first, guesses, cutoff=0.5)
            raise UsageError(unknown_option(name, [guess + dot + rest for guess in nearest]))
        second, dot, rest = rest.partition(".")
        if first in CONSTRUCTORS and second not in ("", "help", *(known := _parameters(*CONSTRUCTORS[first]))):
            raise UsageError(unknown_option(name, [f"{first}.{parameter}{dot}{rest}" for parameter in known]))

    def resolve(self) -> Any:
        """The whole configuration, with every default, as the parser's namespace."""
        self.check()
        from lit_pref.run.config import resolve

        return resolve(self.arguments, self.command)

    def build(self) -> "Run":
        """Trainer, module and data of these options."""
        return self.assemble(self.resolve())

    def assemble(self, config: Any) -> "Run":
        """Trainer, module and data of a configuration that `resolve` returned."""
        from lit_pref.run.run import assemble

        return assemble(config, self.command, self.arguments, self.relaunchable)

    def without(self, prefixes: Iterable[str]) -> list[str]:
        """The arguments without the options that begin with one of the prefixes."""
        return without_options(self.arguments, prefixes)


def _parameters(file: str, name: str) -> list[str]:
    """The parameters of a class's constructor, read from the source, because importing the class imports torch."""
    tree = ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    (init,) = (node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return [argument.arg for argument in init.args.args[1:]]
