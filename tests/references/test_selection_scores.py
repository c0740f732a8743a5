"""Training on selected pairs: the scores they are selected by, computing these once, and refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_policy, write_pairs
from training_runs import Run, fit, logps

from lit_pref.data.selection.criteria import AlignmentPotential, Certainty, ExplicitMargin, ImplicitMargin, Random
from lit_pref.data.selection.selection import Selection
from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.objectives.sft import SFT

pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("selecting")
    make_policy(folder / "policy", seed=0)
    make_policy(folder / "other", seed=5)
    write_pairs(folder / "pairs.jsonl", PAIRS, prompts=10)
    write_pairs(folder / "val.jsonl", 4, seed=1)
    return folder


def run_of(folder: Path, selection: Selection | None, **data: Any) -> Run:
    files = {"train": str(folder / "pairs.jsonl"), "val": str(folder / "val.jsonl")}
    return Run(
        policy={"path": str(folder / "policy"), "dtype": "float64"},
        data={**files, "global_batch": 4, "selection": selection, **data},
    )


def trained_on(run: Run, folder: Path, **options: Any) -> set[str]:
    return {id for _, ids in fit(run, folder, **options).given for id in ids}


def test_a_run_trains_on_the_pairs_that_the_models_own_logits_choose(folder: Path, tmp_path: Path, capfd):
    ran = fit(run_of(folder, AlignmentPotential(weight=1.5, keep=0.4)), tmp_path)
    everything = ran.trainer.datamodule.unselected
    by_id = {pair.id: pair for pair in everything}
    said = logps(ran.module.policy.build(), by_id.values())
    tokens = np.array([[len(by_id[id].chosen), len(by_id[id].rejected)] for id in said["id"]])
    means = np.array([said["chosen_logp"], said["rejected_logp"]]).T / tokens
    explicit = np.array([by_id[id].margin for id in said["id"]])
    implicit = np.abs(means[:, 0] - means[:, 1])
    z = [(values - values.mean()) / values.std() for values in (explicit, implicit)]
    best = np.argsort(z[0] - 1.5 * z[1])[-12:]
    assert {id for _, ids in ran.given for id in ids} == {said["id"][k] for k in best}
    assert len(ran.trainer.datamodule.train_pairs) == 12 and len(everything) == PAIRS
    out = capfd.readouterr().out
    assert f"{ran.module.selected}\n" in out and "kept 12 of 30 pairs (40.0%), score from" in out
    assert out.count("warning     selection: ") == 2


def test_the_policy_is_asked_once_and_under_lora_it_is_the_same_one(folder: Path, tmp_path: Path, capfd):
    run = run_of(folder, ImplicitMargin(keep=0.5))
    first = trained_on(run, tmp_path / "first")
    capfd.readouterr()
    lora = replace(run, policy={**run.policy, "lora": Lora(r=2)})
    for again, at in ((run, "second"), (lora, "lora")):
        assert trained_on(again, tmp_path / at) == first and len(first) == 15
        assert "missing from the store" not in capfd.readouterr().out


def test_a_reference_can_be_another_model(folder: Path, tmp_path: Path):
    ran = fit(run_of(folder, Certainty(count=3, reference=str(folder / "other"))), tmp_path, max_epochs=0)
    pairs = list(ran.trainer.datamodule.unselected)
    policy = logps(ran.module.policy.build(), pairs)
    other = logps(ModelSpec(path=str(folder / "other")).build(), pairs)
    ratios = [np.subtract(policy[f"{side}_logp"], other[f"{side}_logp"]) for side in ("chosen", "rejected")]
    largest = np.argsort(np.abs(ratios[0] - ratios[1]))[-3:]
    assert {pair.id for pair in ran.trainer.datamodule.train_pairs} == {policy["id"][k] for k in largest}


def test_a_run_does_not_resume_with_another_selection(folder: Path, tmp_path: Path):
    run = run_of(folder, ExplicitMargin(keep=0.5))
    started = fit(run, tmp_path, stop_at_step=2)
    whole = trained_on(run, tmp_path / "whole")
    resumed = fit(run, tmp_path / "on", ckpt=started.checkpoint(2))
    assert {id for ran in (started, resumed) for _, ids in ran.given for id in ids} == whole
    for other in (ExplicitMargin(keep=0.6), None, Random(keep=0.5)):
        with pytest.raises(UserError, match="data"):
            fit(run_of(folder, other), tmp_path / "other", ckpt=started.checkpoint(2))


def test_training_twice_chooses_from_all_pairs_both_times(folder: Path, tmp_path: Path):
    run = run_of(folder, Random(keep=0.5))
    ran = fit(run, tmp_path)
    kept = ran.trainer.datamodule.train_pairs.ids
    ran.trainer.datamodule.setup("fit")
    assert ran.trainer.datamodule.train_pairs.ids == kept and len(kept) == 15


def test_margins_can_be_read_from_a_column_that_is_carried(folder: Path, tmp_path: Path):
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    gaps = [line[:-1] + f', "gap": {(7 * k) % PAIRS}}}' for k, line in enumerate(lines)]
    (tmp_path / "gaps.jsonl").write_text("\n".join(gaps))
    selection = ExplicitMargin(margin_column="gap", count=2)
    run = run_of(folder, selection, train=str(tmp_path / "gaps.jsonl"), val=None, val_fraction=0)
    with pytest.raises(
        UsageError, match=r"margin_column is `gap`, which is not one of the pairs' columns \(none\); add it"
    ):
        fit(run, tmp_path)
    ran = fit(replace(run, data={**run.data, "columns": ["gap"]}), tmp_path)
    assert ran.trainer.datamodule.train_pairs.column("gap").tolist() in ([29, 28], [28, 29])


@pytest.mark.parametrize(
    ("selection", "change", "sentence"),
    [
        (Certainty(), {}, "the reference is the policy itself before its first step, so every implicit margin is 0"),
        (ImplicitMargin(), {"objective": SFT}, "reads both responses, and SFT only the chosen ones"),
        (Certainty(), {"objective": SFT}, "reads both responses, and SFT only the chosen ones"),
        (ExplicitMargin(threshold=1e9), {}, "keeps no pair"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, selection: Selection, change: Any, sentence: str):
    with pytest.raises(UserError, match=sentence):
        fit(replace(run_of(folder, selection), **change), tmp_path)


def test_what_needs_no_rejected_response_chooses_for_sft(folder: Path, tmp_path: Path):
    assert len(trained_on(replace(run_of(folder, Random(keep=0.5)), objective=SFT), tmp_path)) == 15


def test_a_score_that_is_no_number_is_named_by_file_and_line(folder: Path, tmp_path: Path):
    save_broken(folder / "policy", tmp_path / "nan", word=" elm")
    run = run_of(folder, ImplicitMargin())
    run = replace(run, policy={"path": str(tmp_path / "nan")}, layout="padded")
    with pytest.raises(UserError, match=r"pairs.jsonl, line \d+: selection \(policy\) gives a response .* nan") as said:
        fit(run, tmp_path)
    line = int(str(said.value).split("line ")[1].split(":")[0])
    assert "elm" in (folder / "pairs.jsonl").read_text().splitlines()[line - 1]


def save_broken(source: Path, target: Path, word: str) -> None:
    """The model with an embedding that is no number."""
    policy = ModelSpec(path=str(source))
    model, tokenizer = policy.build(), policy.load_tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.encode(word, add_special_tokens=False)[0]] = torch.nan
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
