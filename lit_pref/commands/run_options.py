"""The options of a run as a command receives them: checked first, and built when the command needs the run."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean, nearest_names
from lit_pref.option_split import values_of, without_options
from lit_pref.parser import unknown_option

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


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, as typed after those of a command.

    Args:
        command: the name of the command.
        arguments: the options.
        relaunchable: whether this process was started by `python -m lit_pref` with these options, so that its command
            line can start further processes of the same run.
    """

    command: str
    arguments: tuple[str, ...]
    relaunchable: bool = False

    @property
    def configs(self) -> list[str]:
        """The configuration files, in their order."""
        return values_of(self.arguments, "-c", "--config")

    def check(self) -> None:
        """Refuse options from which no run could be built, without importing torch.

        Raises:
            UsageError: an option does not exist, a file is missing, or there is neither a file nor an objective.
        """
        names = [word.partition("=")[0].rstrip("+") for word in self.arguments if word.startswith("--")]
        for name in names:
            first, dot, rest = name[2:].partition(".")
            if first not in TOP_LEVEL:
                nearest = nearest_names(first, TOP_LEVEL, cutoff=0.5)
                raise UsageError(unknown_option(name[2:], [guess + dot + rest for guess in nearest]))
        if {"-h", "--help"} & {*names, *self.arguments} or any(name.endswith(".help") for name in names):
            return
        for config in self.configs:
            path = Path(config)
            if path.suffix in (".yaml", ".yml", ".json") and not path.exists():
                siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
                raise UsageError(f"config file {path} does not exist{did_you_mean(path.name, siblings)}")
        if not self.configs and not any(name.startswith("--model.objective") for name in names):
            raise UsageError("missing: --model.objective; give it in a file (--config FILE) or as an option")

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
