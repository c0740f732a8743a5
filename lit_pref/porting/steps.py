"""Settings of transformers' trainer that are a number of optimizer steps, or a share of all of them."""

import math
from typing import Any

from lit_pref.errors import UsageError
from lit_pref.porting.losses import Settings

Options = dict[str, Any]
"""Options of a run by their dotted names."""

LOGGING_STEPS = 10
"""TRL's default of `logging_steps`."""


def number_of(value: float, settings: Settings) -> int | None:
    """Return a number of optimizer steps, or None: for 0, and for a share of all steps if their number is unknown.

    >>> number_of(50.0, {}), number_of(0.1, {"max_steps": 25}), number_of(0.1, {})
    (50, 3, None)
    """
    if value >= 1:
        return int(value)
    total = settings.get("max_steps") or 0
    return math.ceil(total * value) if total > 0 and value > 0 else None


def validation(settings: Settings) -> Options:
    """Return the options of `eval_strategy` with `eval_steps`, which counts the steps of a run and not of an epoch.

    A share of all steps is the share of an epoch times the number of epochs.
    """
    if settings["eval_strategy"] == "no":
        return {"data.val_fraction": 0.0}
    if settings["eval_strategy"] != "steps":
        return {}
    interval = settings.get("eval_steps") or settings.get("logging_steps") or LOGGING_STEPS
    if (steps := number_of(interval, settings)) is not None:
        return {"trainer.val_check_interval": steps, "trainer.check_val_every_n_epoch": None}
    epochs = _epochs(interval, settings)
    if epochs <= 1:
        return {"trainer.val_check_interval": epochs}
    return {} if epochs % 1 else {"trainer.check_val_every_n_epoch": int(epochs)}


def _epochs(share: float, settings: Settings) -> float:
    """The share of all optimizer steps in epochs."""
    return round(share * float(settings["num_train_epochs"]), 9)


def logging(value: float, settings: Settings) -> Options:
    """Return the option of `logging_steps`."""
    steps = number_of(value, settings)
    return {} if steps is None else {"trainer.log_every_n_steps": steps}


def checkpoints(value: float, settings: Settings) -> Options:
    """Return the option of `save_steps` with `save_total_limit`."""
    steps = number_of(value, settings)
    arguments = {"every": steps, "keep": settings.get("save_total_limit")}
    return {} if steps is None else {"trainer.callbacks": [{"class_path": "Checkpoints", "init_args": arguments}]}


def warmup(value: float, settings: Settings) -> Options:
    """Return the option of `warmup_steps`, which is a share of all steps below 1, as it is here."""
    steps = number_of(value, settings)
    return {"model.schedule.warmup": value if steps is None else steps}


def warmup_ratio(value: float, settings: Settings) -> Options:
    """Return the option of `warmup_ratio` of earlier releases, which `warmup_steps` overrides.

    Raises:
        UsageError: it is the whole run, which has no number of steps yet.
    """
    if settings["warmup_steps"]:
        return {}
    if value < 1:
        return warmup(value, settings)
    if (total := settings.get("max_steps") or 0) > 0:
        return {"model.schedule.warmup": total}
    raise UsageError(
        f"--from_trl: warmup_ratio is {value}, and here a warm-up is a share below 1 or a number of optimizer steps: "
        "give warmup_steps instead, the steps of the whole run"
    )


WITHOUT_SHARES = {"logging_steps": "trainer.log_every_n_steps", "save_steps": "`every` of Checkpoints"}
"""Settings that may be a share of all steps in transformers, and the setting here, which is a number of steps."""


def share_remark(name: str, value: Any, settings: Settings) -> str:
    """Return the remark on a share of all optimizer steps that is not one here; empty if there is none.

    >>> share_remark("logging_steps", 0.5, {"max_steps": -1})
    'logging_steps=0.5: it is a share of all optimizer steps, and trainer.log_every_n_steps is a number of them: write \
that number, or give max_steps too.'
    """
    if not isinstance(value, float) or not 0 < value < 1 or number_of(value, settings) is not None:
        return ""
    share = f"{name}={value}: it is a share of all optimizer steps"
    if name in WITHOUT_SHARES:
        return f"{share}, and {WITHOUT_SHARES[name]} is a number of them: write that number, or give max_steps too."
    if name != "eval_steps" or settings["eval_strategy"] != "steps":
        return ""
    epochs = _epochs(value, settings)
    if epochs > 1 and epochs % 1:
        return (
            f"{share}, of {epochs:g} epochs: write that number of steps as trainer.val_check_interval, with "
            "trainer.check_val_every_n_epoch: null, or give max_steps too."
        )
    if epochs < 1 and not math.isclose(round(1 / epochs) * epochs, 1):
        return (
            f"{share}, and trainer.val_check_interval is a share of an epoch, {epochs:g}, counted from the beginning "
            "of each epoch. To validate every N steps of the run, give max_steps too."
        )
    return ""
