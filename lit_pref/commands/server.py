"""Servers in the options of a command, and folders of results in which their answers are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pref.errors import UsageError

if TYPE_CHECKING:
    from lit_pref.generating.endpoint import Endpoint
    from lit_pref.judging.endpoint_judge import EndpointJudge

ASKED = "asked"
"""The folder of what a judge or a model was asked, within the folder of results."""


@dataclass(frozen=True)
class Server:
    """How a server is asked; `options` are the names of the options for its address and model, for messages."""

    url: str
    model: str | None
    max_new_tokens: int
    concurrency: int
    timeout: float
    retries: int
    temperature: float = 0.0
    options: tuple[str, str] = ("--endpoint", "--model_name")

    def engine(self) -> "Endpoint":
        """Return the engine.

        Raises:
            UserError: the package `openai` is not installed.
            UsageError: a number is out of range.
        """
        from lit_pref.generating.endpoint import Endpoint
        from lit_pref.models.sampling import Sampling

        return Endpoint(
            self.url,
            self.model,
            Sampling(self.temperature),
            0,
            self.max_new_tokens,
            concurrency=self.concurrency,
            timeout=self.timeout,
            retries=self.retries,
            options=self.options,
        )

    def judge(self, folder: Path, max_unreadable: float) -> "EndpointJudge":
        """Return the server as a judge whose answers are kept in a folder.

        Raises:
            UserError: the package `openai` is not installed.
            UsageError: a number is out of range.
        """
        from lit_pref.judging.endpoint_judge import EndpointJudge

        return EndpointJudge(self.engine(), folder, max_unreadable)


def refuse_out_of_others(out: Path, command: str) -> None:
    """Refuse a folder with files that do not come from asking: what was asked before is read, and results replaced.

    Raises:
        UsageError: the folder is in use.
    """
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / ASKED).is_dir())):
        raise UsageError(f"{out} is not empty, and {command} has asked nothing there: name another --out")
