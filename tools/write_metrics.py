"""Writes docs/metrics.md: every TensorBoard tag and every record column, from the mappings beside the code."""

import sys
from collections.abc import Mapping
from pathlib import Path

from lit_pref.callbacks.gold_reward import BEST, GOLD
from lit_pref.metrics.calibration import CALIBRATION
from lit_pref.metrics.list_metrics import LISTS
from lit_pref.metrics.meaning import FIGURES, LOGGED_BY_OBJECTIVES, TRAINING, Meaning
from lit_pref.metrics.pair_metrics import MEASURES, TOTALS
from lit_pref.metrics.records import COLUMNS

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAD = """# Metrics and records

Written by `make docs` from `lit_pref/metrics/`. Words in capitals are placeholders: K is the index of a reference,
COLUMN a column of the data, GROUP a source or a value of `data.group_column`, BIN a range of margins, METHOD the class
of an objective in a sum (`Weighted`), VALUE a name that it logs.

π is the policy, π_ref the objective's reference, h_y = log π(y) - log π_ref(y), w the chosen response and l the
rejected one, z = chosen reward - rejected reward, and beta, φ, o, p as in [methods.md](methods.md). A reward is in
units of beta x nats. A log-prob is a sum over the tokens of the response, eos included.
"""
MEANS = """## Means over pairs: `train/` and `val/`

`train/` is the mean over all pairs since the last log line (`trainer.log_every_n_steps`), on all ranks; `val/` is the
mean over all held-out pairs, each once; `test/` is the same for the command `test`. If a value is NaN or infinite, so
is the mean. Values that your own objective logs appear under the same prefixes."""
CALIBRATED = """## Calibration: `val/` only

Is q = sigmoid(z) the probability that the chosen response is better? Every pair counts in both orders with weight 1/2,
and `lit_pref/metrics/calibration.py` says why. The label p is 1; under `calibration@COLUMN` it is `p_true` or
`probability`, if the data have them, or `target`, unless that is 1 for all pairs.

The calibration error of a perfectly calibrated model is not 0 on few pairs: about 0.14 on 50, falling with the root
of their number. The closing table and the diagrams show it as `if calibrated`. Before training a policy that is its own
reference has z = 0 for every pair, so no calibration error and no use: compare log-loss or Brier score, which count
calibration and sharpness together. Intervals of the closing table are over prompts, not over training seeds."""
OF_LISTS = """## Lists of responses: `val/` only

With an objective over lists (docs/reward_models.md), the losses of `train/` and `val/` are means over lists, and all
else is a mean over their responses. Scores are the labels of the data."""
SPLITS: dict[str, Meaning] = {
    "val/COLUMN": Meaning("mean of a numeric column of the data (`data.columns`)", "of the data"),
    "val/group/GROUP/METRIC": Meaning("every mean and total of `val/`, over the pairs of one group", "as METRIC"),
    "val/margin/BIN/METRIC": Meaning("the same over one bin of the margin (`model.margin_bins`)", "as METRIC"),
}
RECORDS = """## Columns of a record

`records/val-step=N.parquet` in the run folder has one row per held-out pair (`validate`, `test` and `predict` write
files of their own). In addition to these columns it has every value that the objective logs, under the names above, and
the numeric columns of the data (`data.columns`)."""


def means() -> dict[str, Meaning]:
    """Return the meaning of each mean over pairs, without prefix."""
    return {**{name: measure.meaning for name, measure in MEASURES.items()}, **LOGGED_BY_OBJECTIVES}


def calibration() -> dict[str, Meaning]:
    """Return the meaning of each calibration tag."""
    against_label = {f"val/calibration/{name}": meaning for name, meaning in CALIBRATION.items()}
    others = {name: meaning for name, meaning in CALIBRATION.items() if name != "ece_if_calibrated"}
    return against_label | {f"val/calibration@COLUMN/{name}": meaning for name, meaning in others.items()}


def tags() -> set[str]:
    """Return every TensorBoard tag, with words in capitals for names of the run."""
    return {f"{prefix}/{name}" for prefix in ("train", "val") for name in means()} | {
        *calibration(),
        *(f"val/lists/{name}" for name in LISTS),
        *TRAINING,
        *TOTALS,
        *SPLITS,
        *FIGURES,
    }


def columns() -> set[str]:
    """Return every column of a record, apart from those of the data."""
    return {*COLUMNS, *LOGGED_BY_OBJECTIVES}


def page() -> str:
    """Return the text of the page."""
    parts = [HEAD, MEANS, _table({name: measure.meaning for name, measure in MEASURES.items()})]
    parts += ["By the parts of an objective:", _table(LOGGED_BY_OBJECTIVES)]
    parts += ["## Totals and the training loop", _table({**TOTALS, **TRAINING})]
    parts += [
        CALIBRATED,
        _table(calibration()),
        OF_LISTS,
        _table({f"val/lists/{name}": meaning for name, meaning in LISTS.items()}),
        "## Columns of the data, splits, figures and texts",
        _table({**SPLITS, **FIGURES}),
    ]
    parts += ["## In the testbed (callbacks `GoldReward` and `GoldOfBest`)", _table({**GOLD, **BEST})]
    parts += [RECORDS, _table(COLUMNS)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _table(meanings: Mapping[str, Meaning]) -> str:
    rows = [f"| `{name}` | {_escaped(formula)} | {unit} |" for name, (formula, unit) in meanings.items()]
    return "\n".join(["| name | formula | unit |", "|---|---|---|", *rows])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if "--check" in sys.argv:
        text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        sys.exit(0 if text == page() else "docs/metrics.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
