"""Every tag and column that a run logs is on docs/metrics.md, and the page names nothing that no run logs."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, make_policy
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import Run, fit

from lit_pref.callbacks.sample_texts import SampleTexts
from lit_pref.metrics.list_metrics import LISTS
from lit_pref.metrics.records import read_parquet
from lit_pref.objectives.beta_dpo import BetaDPO
from lit_pref.objectives.conditional_contrast import ConditionalContrast
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.hpo import HPO
from lit_pref.objectives.parts.reference import Harmonic
from lit_pref.objectives.parts.target import MarginTarget
from lit_pref.objectives.parts.temperature import EpsilonStep
from lit_pref.objectives.parts.weight import ConstantWeight
from lit_pref.objectives.selm import SELM
from lit_pref.objectives.weighted import Weighted
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy

sys.path.append(str(ROOT / "tools"))
import write_metrics

FROM_THE_DATA = {"p_true", "good_chosen", "good_rejected"}
FILLINGS = {
    "METRIC": ".+",
    "COLUMN": "(p_true|good_chosen|good_rejected|probability|target)",
    "GROUP": "s[01]",
    "BIN": r"\d_\w+[\d.]+",
    "METHOD": "[A-Z][A-Za-z]*",
    "VALUE": "[a-z_]+(/[0-9])?",
    "K": r"\d",
}
"""Words in capitals on the page, and what they are in this run."""


class Board(Callback):
    """Logs to TensorBoard too, and splits validation by margin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer, pl_module, stage):
        trainer.loggers = [*trainer.loggers, TensorBoardLogger(str(self.folder), name="", version="")]
        pl_module.evaluation.margin_bins = 2


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[set[str], set[str]]:
    """Tags and record columns of a run in which every shipped part that logs something takes part."""
    folder = tmp_path_factory.mktemp("metrics")
    rows = [
        {
            "prompt": f"red {k} :",
            "chosen": f" tin {k}",
            "rejected": f" oak cat {k}",
            "extra_response": f" elm {k}",
            "margin": 0.5 + k,
            "probability": 0.75,
            "good_chosen": 1.0,
            "good_rejected": 0.1 * k,
            "p_true": 0.5 + 0.01 * k,
            "source": f"s{k % 2}",
        }
        for k in range(12)
    ]
    for name, own in (("pairs.jsonl", rows[:8]), ("val.jsonl", rows[4:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in own))
    data = {"train": str(folder / "pairs.jsonl"), "val": str(folder / "val.jsonl"), "global_batch": 4}
    data |= {"columns": ["p_true"], "group_column": "source"}
    other = make_policy(folder / "other", seed=1)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "output_router_logits": True}
    policy = make_policy(folder / "policy", seed=0, model_type="mixtral", **experts)
    run = Run(
        policy={"path": str(policy)},
        data=data,
        objective=lambda: SELM(target=MarginTarget(), reference=Harmonic(), temperature=EpsilonStep()),
        references=lambda: [InitialPolicy(), Pretrained(str(other))],
        reference_store=False,
    )
    fit(run, folder / "run", callbacks=[Board(folder / "board"), SampleTexts(prompts=1, max_new_tokens=2)])
    summed = [BetaDPO(reference=Harmonic(), weight=ConstantWeight(0.5)), DPO(reference=Harmonic())]
    fit(replace(run, objective=lambda: Weighted(summed)), folder / "sum", callbacks=[Board(folder / "board-sum")])
    for name, objective in (("contrast", ConditionalContrast), ("hpo", lambda: HPO({"good": 1.0}))):
        further = replace(run, objective=objective, references=lambda: None, trainer={"max_steps": 1})
        fit(further, folder / name, callbacks=[Board(folder / f"board-{name}")])
    tags: set[str] = set()
    for board in folder.glob("board*"):
        events = EventAccumulator(str(board), size_guidance={"images": 0, "tensors": 0}).Reload().Tags()
        tags |= {tag.removesuffix("/text_summary") for kind in ("scalars", "images", "tensors") for tag in events[kind]}
    records = [read_parquet(file) for file in folder.glob("*/records/*.parquet")]
    return tags, {column for own in records for column in own}


def unnamed(names: set[str], patterns: set[str]) -> set[str]:
    return {name for name in names if not any(matches(pattern, name) for pattern in patterns)}


def matches(pattern: str, name: str) -> bool:
    """Whether a name is the pattern with its words in capitals filled in."""
    parts = re.split("(" + "|".join(FILLINGS) + ")", pattern)
    return re.fullmatch("".join(FILLINGS.get(part, re.escape(part)) for part in parts), name) is not None


def test_every_logged_tag_is_on_the_page(logged: tuple[set[str], set[str]]):
    assert unnamed(logged[0] - {"epoch", "hp_metric"}, write_metrics.tags()) == set()


def test_every_record_column_is_on_the_page(logged: tuple[set[str], set[str]]):
    assert unnamed(logged[1] - FROM_THE_DATA, write_metrics.columns()) == set()


def test_the_page_names_no_tag_or_column_that_is_not_logged(logged: tuple[set[str], set[str]]):
    unlogged = {p for p in write_metrics.tags() if not any(matches(p, tag) for tag in logged[0])}
    unlogged |= {p for p in write_metrics.columns() if not any(matches(p, column) for column in logged[1])}
    of_lists = {"list", *(f"val/lists/{name}" for name in LISTS)}  # tests/modules/test_lists.py logs them
    of_bco = {"train/state/delta"}  # tests/objectives/test_bco.py reads it
    # The last one needs more pairs than this run has.
    assert unlogged - of_lists - of_bco == {"val/calibration/ece_if_calibrated"}


def test_the_page_shows_every_tag_and_column_with_a_formula():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = {tag.removeprefix("train/").removeprefix("val/") for tag in write_metrics.tags()} | write_metrics.columns()
    names |= {*write_metrics.GOLD, *write_metrics.BEST}  # of a callback that needs the testbed
    shown = {name.removeprefix("train/").removeprefix("val/") for name in re.findall(r"^\| `(.+?)` \| \S", page, re.M)}
    assert names == shown
