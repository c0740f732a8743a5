"""The losses of TRL's trainers, each with the objective here that is the same, and its differences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]
"""The arguments of a TRL configuration, defaults included."""

PER_TOKEN = (
    "TRL takes the mean of the negative log-probs over all chosen tokens of a batch, so that long responses count more; "
    "here every pair counts once"
)


@dataclass(frozen=True)
class Loss:
    """A loss of a TRL trainer.

    Args:
        trainer: `dpo`, `cpo`, `orpo` or `reward`.
        name: its `loss_type`; empty where the trainer has only one loss.
        objective: the class here.
        arguments: the arguments of that class, from TRL's settings.
        difference: where the two differ, in a sentence; empty if they agree to rounding.
        ignored: settings of TRL that change nothing in this loss.
    """

    trainer: str
    name: str
    objective: str
    arguments: Callable[[Settings], dict[str, Any]]
    difference: str = ""
    ignored: tuple[str, ...] = ("label_smoothing",)


def part(name: str, **arguments: Any) -> Any:
    """Return the value that names a class in a configuration.

    >>> part("Mean"), part("Smoothed", epsilon=0.1)
    ('Mean', {'class_path': 'Smoothed', 'init_args': {'epsilon': 0.1}})
    """
    return {"class_path": name, "init_args": arguments} if arguments else name


def beta(settings: Settings) -> dict[str, Any]:
    """The argument beta."""
    return {"beta": settings["beta"]}


def smoothed(settings: Settings) -> dict[str, Any]:
    """The target that label smoothing stands for, if there is any."""
    epsilon = settings["label_smoothing"]
    return {"target": part("Smoothed", epsilon=epsilon)} if epsilon else {}


def nll(settings: Settings) -> dict[str, Any]:
    """The term of the chosen responses' negative log-prob, if it has a weight."""
    weight = settings["cpo_alpha"]
    return {"terms": [part("ChosenNLL", coefficient=weight)]} if weight else {}


LOSSES = (
    Loss("dpo", "sigmoid", "DPO", beta),
    Loss("dpo", "hinge", "DPO", lambda s: {**beta(s), "link": "Hinge"}),
    Loss("dpo", "ipo", "DPO", lambda s: {**beta(s), "link": "Squared", "tokens": "Mean"}),
    Loss("dpo", "sigmoid_norm", "DPO", lambda s: {**beta(s), "tokens": "Mean"}),
    Loss("dpo", "sft", "SFT", lambda s: {}, PER_TOKEN),
)


def loss_named(trainer: str, name: str) -> Loss | None:
    """Return the loss of a trainer by its `loss_type`; None if there is none."""
    return next((loss for loss in LOSSES if (loss.trainer, loss.name) == (trainer, name)), None)


def trl_names(objective: str) -> list[str]:
    """Return the names that TRL has for an objective's losses, with the trainer.

    >>> trl_names("SFT")
    ['dpo: sft']
    """
    return [f"{loss.trainer}: {loss.name}".removesuffix(": ") for loss in LOSSES if loss.objective == objective]
