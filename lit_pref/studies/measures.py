"""Which measures the trials of a study write."""

from collections.abc import Iterator
from typing import Any

from lit_pref.callbacks.gold_reward import BEST, GOLD
from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean
from lit_pref.metrics.calibration import CALIBRATION
from lit_pref.metrics.meaning import LOGGED_BY_OBJECTIVES, TRAINING
from lit_pref.metrics.pair_metrics import MEASURES, TOTALS
from lit_pref.studies.study import NAMES, Measure, Study


def refuse_unknown_measures(study: Study, module: Any) -> None:
    """Refuse measures that no trial of a run writes.

    A callback or an objective of the user's own may log any name, which is then looked for after the first trial.

    Args:
        study: the study.
        module: the module of a cell whose data are prepared.

    Raises:
        UsageError: there is such a measure.
    """
    gold = {name for callback in module.trainer.callbacks for name in getattr(callback, "numbers", {})}
    own = [module.objective, *module.trainer.callbacks]
    free = any(not type(part).__module__.startswith(("lit_pref.", "lightning.")) for part in own)
    known = {*_known(module), *gold}
    for measure in study.measures:
        by_margin = measure.tag.startswith("val/margin/") and module.evaluation.margin_bins > 0
        if measure.tag in known or measure.metric == "time" or free or by_margin:
            continue
        raise UsageError(f"{study.file}: measure: no trial writes {_named(measure)}{_remedy(measure, known, module)}")


def _known(module: Any) -> Iterator[str]:
    yield from (tag for tag in (*TRAINING, *TOTALS) if tag.startswith("train/"))
    yield "train/loss"
    if not len(module.data.val_pairs):
        return
    yield from (tag for tag in TOTALS if tag.startswith("val/"))
    names = [*MEASURES, *(name for name in LOGGED_BY_OBJECTIVES if not name.endswith("/K"))]
    if len(module.references) < 2:
        names.remove("rewards/accuracies@reference0")
    targets = ["", "@target", *(f"@{name}" for name in ("p_true", "probability") if name in _columns(module))]
    names += [f"calibration{target}/{name}" for target in targets for name in CALIBRATION]
    groups = [f"group/{name}" for name in _groups(module)]
    yield from (f"val/{name}" for name in names)
    yield from (f"val/{group}/{name}" for group in groups for name in names)


def _columns(module: Any) -> list[str]:
    probability = module.data.val_pairs[0].probability is not None
    return [*module.data.columns, *(["probability"] if probability else [])]


def _groups(module: Any) -> list[str]:
    groups = module.data.val_pairs.column("group")
    return sorted({str(group) for group in groups if group is not None} | {"ungrouped"})


def _named(measure: Measure) -> str:
    return measure.metric if measure.tag == measure.metric else f"{measure.metric} ({measure.tag})"


def _remedy(measure: Measure, known: set[str], module: Any) -> str:
    for numbers, callback in ((GOLD, "GoldReward"), (BEST, "GoldOfBest")):
        if measure.tag in numbers:
            return (
                f"; the gold reward of the testbed is measured by a callback: add `- class_path: {callback}` to "
                "trainer.callbacks of the base"
            )
    if measure.tag.startswith("val/") and not len(module.data.val_pairs):
        return "; the base run holds out no pairs: set data.val or data.val_fraction"
    if "@p_true" in measure.tag:
        return "; it needs the true probability: add p_true to data.columns of the base"
    return did_you_mean(measure.metric, {*known, *NAMES, "time"})
