"""The layout is a matter of speed: training gives the same losses and weights in both, and a run keeps its own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import make_policy, write_pairs
from training_runs import Ran, Run, fit
from transformers import LlamaConfig

from lit_pref.__main__ import main
from lit_pref.data.batching.collation import collate
from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.layout_choice import attention_saved, decide_layout, microseconds_saved, tokens_saved
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.objectives.parts.reference import Harmonic
from lit_pref.objectives.parts.target import MarginTarget
from lit_pref.objectives.parts.temperature import EpsilonStep
from lit_pref.objectives.sft import SFT
from lit_pref.objectives.tdpo import TDPO
from lit_pref.objectives.wpo import OnPolicyWeight
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 20
TEN, LONG = numpy.array([[10, 4, 6]] * 4), numpy.array([[500, 100, 140]] * 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    write_pairs(folder / "pairs.jsonl", STEPS * 4)
    write_pairs(folder / "val.jsonl", 5, seed=1)
    make_policy(folder / "other", seed=5)
    make_policy(folder / "own tokenizer", seed=6, vocabulary=270)
    return folder


def run_of(folder: Path, policy_folder: Path, layout: str, **changes: Any) -> Run:
    data = {"train": str(folder / "pairs.jsonl"), "val": str(folder / "val.jsonl"), "global_batch": 4}
    policy = {"path": str(policy_folder)} | changes.pop("policy", {})
    return replace(Run(policy=policy, data=data, layout=layout), **changes)


def short_pairs(folder: Path, number: int) -> dict[str, Any]:
    """Pairs of one word each, too short to gain by sharing."""
    for name, first in (("short.jsonl", "cat"), ("short-val.jsonl", "owl")):
        rows = [{"prompt": "red :", "chosen": f" {first} {k}", "rejected": f" dog {k}"} for k in range(number)]
        (folder / name).write_text("".join(json.dumps({**row, "margin": 1.0}) + "\n" for row in rows))
    return {"train": str(folder / "short.jsonl"), "val": str(folder / "short-val.jsonl"), "global_batch": 2}


def weights(ran: Ran) -> torch.Tensor:
    assert ran.module.scorer is not None
    return torch.cat([p.detach().flatten() for p in ran.module.scorer.parameters()])


def both(folder: Path, policy_folder: Path, tmp_path: Path, **changes: Any) -> list[Ran]:
    return [
        fit(run_of(folder, policy_folder, layout, **changes), tmp_path / layout)
        for layout in ("prefix_shared", "padded")
    ]


def three_papers() -> DPO:
    parts: Any = {"target": MarginTarget(1.1), "reference": Harmonic(0.1), "temperature": EpsilonStep(0.01)}
    return DPO(beta=0.1, **parts)


def weighted_tdpo() -> TDPO:
    return TDPO(beta=0.1, weight=OnPolicyWeight())


def references(folder: Path) -> list[Any]:
    return [InitialPolicy(), Pretrained(str(folder / "other")), Pretrained(str(folder / "own tokenizer"))]


@pytest.mark.parametrize(
    ("objective", "several"),
    [
        (DPO, False),
        (MMPO, False),
        (EpsilonDPO, False),
        (SFT, False),
        (MRPO, True),
        (three_papers, True),
        (weighted_tdpo, False),
    ],
)
def test_objectives_train_alike_over_twenty_steps(objective, several, folder, policy_folder, tmp_path):
    changes = {"references": lambda: references(folder)} if several else {}
    shared, padded = both(folder, policy_folder, tmp_path, objective=objective, **changes)
    assert (shared.module.batch_layout, padded.module.batch_layout) == ("prefix_shared", "padded")
    ours, theirs = (ran.logged.column("train/loss") for ran in (shared, padded))
    assert len(ours) == STEPS and len(set(theirs)) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert shared.logged.column("val/loss") == pytest.approx(padded.logged.column("val/loss"), rel=1e-5)


FORMS = {
    # Scores agree to 1e-10 (tests/models/test_prefix_sharing.py); in gradients HF's norms round to float32 in between.
    "float64": ({"policy": {"dtype": "float64"}}, 1e-6),
    "lora": ({"policy": {"lora": Lora(r=2)}, "optimizer": lambda p: torch.optim.SGD(p, lr=0.01)}, 1e-5),
    "gradient checkpointing": ({"policy": {"gradient_checkpointing": True}}, 1e-5),
    "bf16-mixed": ({"trainer": {"precision": "bf16-mixed"}}, 3e-2),
    "bf16-true": ({"trainer": {"precision": "bf16-true"}}, 1e-1),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_policy_of_any_form_trains_alike(form, folder, policy_folder, tmp_path):
    changes, tolerance = FORMS[form]
    shared, padded = both(folder, policy_folder, tmp_path, objective=MMPO, **changes)
    losses = [ran.logged.column("train/loss") for ran in (shared, padded)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    if form == "float64":
        moved = weights(padded) - weights(
            fit(run_of(folder, policy_folder, "padded", **changes), tmp_path, max_epochs=0)
        )
        assert (weights(shared) - weights(padded)).norm() < 1e-6 * moved.norm()
    if form == "gradient checkpointing":
        plain = fit(run_of(folder, policy_folder, "prefix_shared", objective=MMPO), tmp_path / "plain")
        assert torch.equal(weights(plain), weights(shared))


# Which layout


def test_auto_is_a_matter_of_lengths_and_configuration(policy_folder: Path):
    policy = ModelSpec(path=str(policy_folder))
    assert decide_layout("auto", policy, LONG) == ("prefix_shared", "saves about 540 of 1280 tokens per pair")
    layout, reason = decide_layout("auto", policy, TEN)
    assert layout == "padded" and "short" in reason
    assert decide_layout("prefix_shared", policy, TEN)[0] == "prefix_shared"
    assert decide_layout("padded", policy, LONG)[0] == "padded"


def test_attention_counts_where_rows_are_long():
    """Long responses to short prompts: few tokens are saved, and the mask of padded rows costs more than all tokens."""
    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    equal, uneven = numpy.array([[2, 1000, 1000]] * 2), numpy.array([[2, 1000, 998], [2, 998, 1000]])
    assert microseconds_saved(equal, config) < 0, "nothing is masked, and 2 tokens are saved"
    assert microseconds_saved(uneven, config) > 1000, "causal rows with padding need a mask, and nothing is skipped"
    assert attention_saved(equal) == 1002**2 - (1002**2 / 2 + 2 * 1000 + 1000**2 / 2)
    one_sided = numpy.array([[2, 10, 0], [2, 10, 0]])
    assert attention_saved(one_sided) == 0.0 and tokens_saved(one_sided) == 0.0


def test_a_wide_model_shares_shorter_pairs(tmp_path: Path):
    wide = ModelSpec(path=str(make_policy(tmp_path / "wide", 0, hidden_size=128, num_hidden_layers=1)))
    assert decide_layout("auto", wide, TEN)[0] == "prefix_shared"


def test_a_model_that_cannot_share_falls_back_and_says_why(tmp_path: Path):
    path = make_policy(tmp_path / "window", 0, model_type="mistral", num_key_value_heads=2, sliding_window=16)
    layout, reason = decide_layout("auto", ModelSpec(path=str(path)), LONG)
    assert layout == "padded" and "window of 16 tokens" in reason
    with pytest.raises(
        UsageError, match=r"model\.layout is prefix_shared, and .* cannot read it: its attention has a sliding window"
    ):
        decide_layout("prefix_shared", ModelSpec(path=str(path)), LONG)


def test_a_reference_that_cannot_share_reads_padded_rows(folder, policy_folder, tmp_path):
    path = make_policy(tmp_path / "window", 9, model_type="mistral", num_key_value_heads=2, sliding_window=6)
    shared, padded = both(folder, policy_folder, tmp_path, references=lambda: [Pretrained(str(path))])
    assert shared.module.batch_layout == "prefix_shared"
    assert shared.logged.column("train/loss") == pytest.approx(padded.logged.column("train/loss"), rel=1e-5)


def test_a_module_trained_on_short_pairs_reads_long_ones_rightly(folder, policy_folder, tmp_path):
    ran = fit(replace(run_of(folder, policy_folder, "auto"), data=short_pairs(folder, 4)), tmp_path / "short")
    assert ran.module.batch_layout == "padded"
    ran.module.batch_layout = "prefix_shared"  # as other data would have it
    pairs = list(ran.trainer.datamodule.val_pairs)
    shared, padded = (ran.module.scorer(collate(pairs, 0, layout=layout)) for layout in ("prefix_shared", "padded"))
    assert (shared.chosen.scores - padded.chosen.scores).abs().max() < 1e-4
    assert (shared.rejected.scores - padded.rejected.scores).abs().max() < 1e-4


def test_a_name_that_is_no_layout_is_refused_with_the_right_one(
    policy_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    policy = ModelSpec(path=str(policy_folder))
    with pytest.raises(
        UsageError, match=r"the layout `shared` is now called `prefix_shared`: set model\.layout to prefix_"
    ):
        PreferenceModule(policy, DPO(), layout="shared")
    with pytest.raises(
        UsageError, match=r"layout is 'paded'; it must be auto, prefix_shared or padded; did you mean pad"
    ):
        PreferenceModule(policy, DPO(), layout="paded")
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    options = ["--model.policy.path", str(policy_folder), "--model.objective", "DPO", "--data.train", "pairs.jsonl"]
    with pytest.raises(SystemExit):
        main(["fit", *options, "--run_dir", "run", "--model.layout", "shared"])
    sentence = "lit_pref: the layout `shared` is now called `prefix_shared`: set model.layout to prefix_shared\n"
    assert capfd.readouterr().err == sentence


def test_a_run_does_not_resume_in_another_layout(folder, policy_folder, tmp_path):
    run = run_of(folder, policy_folder, "prefix_shared")
    ran = fit(run, tmp_path / "first", stop_at_step=2)
    with pytest.raises(UserError, match=r"trained in the prefix_shared layout.*set model\.layout to prefix_shared"):
        fit(replace(run, layout="padded"), tmp_path / "second", ckpt=ran.checkpoint(2))
