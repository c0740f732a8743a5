"""The losses of TRL's trainers, each with the objective here that is the same, and its differences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]
"""The arguments of a TRL configuration, defaults included."""

PER_TOKEN = (
    "TRL takes the mean of the negative log-prob over all chosen tokens of a batch, so that long responses count more; "
    "here every pair counts the same. They agree where all chosen responses are equally long"
)

PER_TOKEN_OF_CPO = f"with cpo_alpha above 0, its default, {PER_TOKEN}"

PARTS = frozenset({"score", "tokens", "weight"})
"""The parts that TRL's settings of DPO choose: f-divergences, LD-DPO's tokens, WPO's weights."""


@dataclass(frozen=True)
class Loss:
    """A loss of a TRL trainer.

    Args:
        trainer: `dpo`, `cpo`, `orpo` or `reward`.
        name: its `loss_type`; empty where the trainer has only one loss.
        objective: the class here.
        arguments: the arguments of that class, from TRL's settings.
        difference: where the two differ, in a sentence; empty if they agree to rounding.
        differs: whether they differ with these settings of TRL.
        open: the parts of `PARTS` that can be chosen with it.
        reads: settings of TRL, beside beta, that change this loss.
    """

    trainer: str
    name: str
    objective: str
    arguments: Callable[[Settings], dict[str, Any]]
    difference: str = ""
    differs: Callable[[Settings], bool] = lambda settings: True
    open: frozenset[str] = PARTS
    reads: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The trainer and the loss, as TRL writes them."""
        return f"{trainer_title(self.trainer)} {self.name}".strip()


def trainer_title(trainer: str) -> str:
    """Return the name of a trainer as TRL writes it.

    >>> trainer_title("dpo"), trainer_title("reward")
    ('DPO', 'Reward')
    """
    return "Reward" if trainer == "reward" else trainer.upper()


def part(name: str, **arguments: Any) -> Any:
    """Return the value that names a class in a configuration.

    >>> part("Mean"), part("Smoothed", epsilon=0.1)
    ('Mean', {'class_path': 'Smoothed', 'init_args': {'epsilon': 0.1}})
    """
    return {"class_path": name, "init_args": arguments} if arguments else name


def beta(settings: Settings) -> dict[str, Any]:
    """The argument beta."""
    return {"beta": settings["beta"]}


def flips(settings: Settings) -> dict[str, Any]:
    """Beta and the share of wrong labels; without one, the default of the class."""
    epsilon = settings["label_smoothing"]
    return {**beta(settings), **({"epsilon": epsilon} if epsilon else {})}


def transport(settings: Settings) -> dict[str, Any]:
    """The arguments of AOT."""
    return {**beta(settings), "label_smoothing": settings["label_smoothing"]}


def cpo_parts(settings: Settings) -> dict[str, Any]:
    """The parts that settings of CPO choose: label smoothing, and AlphaPO's reward of a log-prob."""
    epsilon, alpha = settings["label_smoothing"], settings["alpha"]
    smoothed = {"target": part("Smoothed", epsilon=epsilon)} if epsilon else {}
    return {**smoothed, **({"score": part("AlphaReward", alpha=alpha)} if alpha else {})}


def cpo(settings: Settings) -> dict[str, Any]:
    """The arguments of CPO."""
    return {**beta(settings), "cpo_alpha": settings["cpo_alpha"], **cpo_parts(settings)}


def unsmoothed_cpo(settings: Settings) -> dict[str, Any]:
    """The arguments of CPO with a hinge or squared link, for which TRL reads no label smoothing."""
    return cpo({**settings, "label_smoothing": 0.0})


def simpo(settings: Settings) -> dict[str, Any]:
    """The arguments of SimPO, with CPO's cross-entropy if it has a weight."""
    weight = settings["cpo_alpha"]
    terms = {"terms": [part("ChosenNLL", coefficient=weight)]} if weight else {}
    return {**beta(settings), "gamma": settings["simpo_gamma"], **terms, **cpo_parts(settings)}


def alphapo(settings: Settings) -> dict[str, Any]:
    """The arguments of AlphaPO, for which TRL sets the weight of the cross-entropy to 0."""
    own = {"gamma": settings["simpo_gamma"], "alpha": settings["alpha"]}
    return {**beta(settings), **own, **cpo_parts({**settings, "alpha": 0.0})}


def cross_entropy(settings: Settings) -> bool:
    """Whether CPO's cross-entropy has a weight."""
    return bool(settings["cpo_alpha"])


def centred(settings: Settings) -> dict[str, Any]:
    """The term that holds the mean reward near 0, if it has a weight."""
    weight = settings["center_rewards_coefficient"]
    return {"terms": [part("Center", coefficient=weight)]} if weight else {}


ALONE: frozenset[str] = frozenset()
WEIGHT = frozenset({"weight"})  # TRL divides by the length after its f-divergence and LD-DPO's weights, not before
CPO_READS = ("label_smoothing", "cpo_alpha", "alpha")
LOSSES = (
    Loss("dpo", "sigmoid", "DPO", beta),
    Loss("dpo", "hinge", "DPO", lambda s: {**beta(s), "link": "Hinge"}, "with use_weighting TRL's backward pass fails; "
         "here it works", lambda s: bool(s["use_weighting"])),
    Loss("dpo", "ipo", "IPOMean", lambda s: {"tau": s["beta"]}, open=WEIGHT),
    Loss("dpo", "exo_pair", "EXO", flips, "TRL's loss is infinite at its default label_smoothing of 0, which is "
         "refused here; without one, the paper's 0.001 is taken", lambda s: not s["label_smoothing"],
         reads=("label_smoothing",)),
    Loss("dpo", "nca_pair", "NCA", beta, open=ALONE),
    Loss("dpo", "robust", "RobustDPO", lambda s: {**beta(s), "epsilon": s["label_smoothing"]},
         reads=("label_smoothing",)),
    Loss("dpo", "bco_pair", "BCO", beta, "TRL 1.16 has no delta; here it is the paper's moving mean of the rewards, "
         "which is 0 in the first step", open=ALONE),
    Loss("dpo", "sppo_hard", "SPPO", beta, open=ALONE),
    Loss("dpo", "aot", "AOT", transport, open=ALONE, reads=("label_smoothing",)),
    Loss("dpo", "aot_unpaired", "AOT", lambda s: {**transport(s), "unpaired": True}, open=ALONE,
         reads=("label_smoothing",)),
    Loss("dpo", "apo_zero", "APOZero", beta, open=ALONE),
    Loss("dpo", "apo_down", "APODown", beta, open=ALONE),
    Loss("dpo", "discopop", "DiscoPOP", lambda s: {**beta(s), "tau": s["discopop_tau"]},
         "TRL's loss is NaN in fp32 where beta (h_w - h_l) is below -89; here it is finite", reads=("discopop_tau",)),
    Loss("dpo", "sft", "SFT", lambda s: {}, PER_TOKEN, open=ALONE),
    Loss("dpo", "sigmoid_norm", "DPO", lambda s: {**beta(s), "tokens": "Mean"}, open=WEIGHT),
    Loss("cpo", "sigmoid", "CPO", cpo, PER_TOKEN_OF_CPO, cross_entropy, reads=CPO_READS),
    Loss("cpo", "hinge", "CPO", lambda s: {**unsmoothed_cpo(s), "link": "Hinge"}, PER_TOKEN_OF_CPO, cross_entropy,
         reads=CPO_READS[1:]),
    Loss("cpo", "ipo", "CPO", lambda s: {**unsmoothed_cpo(s), "link": "Squared", "tokens": "Mean"},
         PER_TOKEN_OF_CPO, cross_entropy, reads=CPO_READS[1:]),
    Loss("cpo", "simpo", "SimPO", simpo, PER_TOKEN_OF_CPO, cross_entropy,
         reads=(*CPO_READS, "simpo_gamma")),
    Loss("cpo", "alphapo", "AlphaPO", alphapo, reads=("label_smoothing", "alpha", "simpo_gamma")),
    Loss("orpo", "", "ORPO", lambda s: {"lambd": s["beta"], "prompt_nll": True}, "TRL takes the mean of the negative "
         "log-prob over all tokens of a batch, of prompts and chosen responses, so that long texts count more; here "
         "every pair counts the same. They agree where all prompts with their chosen responses are equally long. The "
         "paper leaves the prompt out: `prompt_nll: false`, which is also cheaper"),
    Loss("reward", "", "BradleyTerry", centred, "TRL subtracts a column `margin` wherever the data have one; here the "
         "offset must be named: `offset: {class_path: ColumnOffset, init_args: {column: margin}}`",
         reads=("center_rewards_coefficient",)),
)  # fmt: skip
"""Every loss of the trainers of TRL 1.16 for pairs."""


def loss_named(trainer: str, name: str) -> Loss | None:
    """Return the loss of a trainer by its `loss_type`; None if there is none."""
    return next((loss for loss in LOSSES if (loss.trainer, loss.name) == (trainer, name)), None)


def trl_names(objective: str) -> list[str]:
    """Return the names that TRL has for an objective's losses, with the trainer.

    >>> trl_names("CPO")
    ['CPO sigmoid', 'CPO hinge', 'CPO ipo']
    """
    return [loss.title for loss in LOSSES if loss.objective == objective]
