"""Reward models trained on lists: preparation, gradients, training, resumption, metrics and refusals."""

import json
import random
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT, WORDS
from lightning.pytorch import Trainer
from torchmetrics.functional import kendall_rank_corrcoef
from training_runs import Memory
from transformers import AutoModelForSequenceClassification

from lit_pref.__main__ import main
from lit_pref.callbacks.checkpointing import AtomicCheckpointIO, Checkpoints
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.data.selection.criteria import Random
from lit_pref.errors import UsageError, UserError
from lit_pref.metrics.list_metrics import LISTS, order_metrics, summarise_lists
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.modules.reward import RewardModule
from lit_pref.objectives.reward.bradley_terry import BradleyTerry
from lit_pref.objectives.reward.listnet import ListNet
from lit_pref.objectives.reward.ranknet import RankNet

MAPPING = {"kind": "list", "prompt": "prompt", "responses": "responses[]", "score": {"path": "scores[]"}}


def lists(number, seed=0):
    """Lists of 2 to 5 responses; the word `good` goes with a high score."""
    rng = random.Random(seed)
    for k in range(number):
        scores = rng.sample(range(10), rng.randint(2, 5))
        texts = [" ".join(["good" if s > 4 else "bad", *rng.choices(WORDS, k=rng.randint(1, 5))]) for s in scores]
        yield {"prompt": f"{rng.choice(WORDS)} {k} :", "responses": [f" {text}" for text in texts], "scores": scores}


def written(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("lists") / "lists.jsonl", lists(22))


def fit(policy, folder, data, objective=None, ckpt=None, stop=None, lr=0.01, layout="padded", **trainer):
    spec = ModelSpec(path=str(policy), head="scalar", seed=1)
    module = RewardModule(spec, objective or RankNet(gamma=0.5), lambda p: torch.optim.AdamW(p, lr=lr), layout=layout)
    module.stop_at_step, logged = stop, Memory()
    options = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1, "num_sanity_val_steps": -1}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False}
    built = Trainer(
        **options | trainer,
        default_root_dir=str(folder),
        logger=logged,
        plugins=[AtomicCheckpointIO()],
        callbacks=[Checkpoints(every=2, keep=None)],
    )
    data = {"mapping": MAPPING, "global_batch": 6, "val_fraction": 0.2, **data}
    built.fit(module, datamodule=PreferenceDataModule(**data), ckpt_path=ckpt)
    return module, built, logged


def test_the_mean_over_lists_does_not_depend_on_micro_batches_nor_layout(tmp_path, policy_folder, file):
    weights = []
    for k, options in enumerate([{}, {"micro_batch": 2}, {"max_tokens": 260}, {"micro_batch": 4}]):
        data = {"train": file, **options}
        layout = "prefix_shared" if k == 3 else "padded"
        module, _, logged = fit(policy_folder, tmp_path / str(k), data, lr=1e-3, layout=layout)
        weights.append((module.scorer.model.score.weight.detach(), logged.column("train/loss")))
    for weight, curve in weights[1:]:
        torch.testing.assert_close(weight, weights[0][0], atol=2e-6, rtol=1e-4)
        assert curve == pytest.approx(weights[0][1], abs=1e-5)


def test_training_lowers_the_loss_and_resumes_to_the_same_bits_and_its_metrics_are_those_of_the_lists(
    tmp_path, policy_folder, file
):
    data = {"train": file, "micro_batch": 2}
    whole, trainer, logged = fit(policy_folder, tmp_path / "whole", data, ListNet(temperature=3.0), max_epochs=4)
    before, after = logged.column("val/loss")[0], logged.column("val/loss")[-1]
    assert after < before - 0.02
    assert set(LISTS) == {name.removeprefix("val/lists/") for name in whole.evaluation.last if "/lists/" in name}
    assert logged.column("val/lists/accuracies")[-1] > 0.7
    records = whole.evaluation.records
    assert {"list", "score", "chosen_reward"} <= records.keys() and summarise_lists({"id": []}) == {}
    pairs = trainer.datamodule.train_pairs
    assert len(pairs.lists) == 19 and sum(logged.steps[k]["train/pairs"] for k in (1, 2, 3, 4)) == len(pairs)
    fit(policy_folder, tmp_path / "part", data, ListNet(temperature=3.0), stop=6, max_epochs=4)
    point = tmp_path / "part" / "checkpoints" / "step=00000006.ckpt"  # two steps into the second epoch
    resumed, *_ = fit(policy_folder, tmp_path / "rest", data, ListNet(temperature=3.0), ckpt=str(point), max_epochs=4)
    assert resumed.trainer.global_step == whole.trainer.global_step == 16
    for name, value in whole.scorer.state_dict().items():
        assert torch.equal(value, resumed.scorer.state_dict()[name]), name


def test_the_command_of_the_page_about_reward_models_trains_and_exports_one(
    tmp_path, monkeypatch, capsys, policy_folder, file
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    for name, target in {"FOLDER": policy_folder, "lists.jsonl": file, "configs": ROOT / "configs"}.items():
        (tmp_path / name).symlink_to(target)
    page = (ROOT / "docs" / "reward_models.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m lit_pref (fit .*listwise\.yaml .*)$", page, re.MULTILINE)
    limits = ["--trainer.max_steps", "1", "--model.policy.lora.r", "2", "--data.val_fraction", "0.3"]
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(command), *limits])
    assert ended.value.code in (0, None)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "runs" / "lists" / "hf").eval()
    score = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert score.shape == (1, 1) and score.isfinite().all()
    shown = " ".join(capsys.readouterr().out.split())
    assert "whole lists of responses[], prompt prompt, labels scores[]" in shown
    assert "lists (the last" in shown or "lists, 1 an epoch" in shown
    assert "Kendall's tau within lists" in shown and "--model.objective ListNet" in shown
    with pytest.raises(SystemExit) as ended:
        main(["check", *shlex.split(command)[1:-2], *limits, "--model"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code in (0, None), shown
    assert re.search(r"responses in \d+ lists kept", shown) and "; expected: " in shown


def test_a_recognised_file_of_lists_gives_pairs_to_an_objective_of_pairs(tmp_path, policy_folder, file):
    _, trainer, _ = fit(policy_folder, tmp_path, {"train": file, "mapping": None}, BradleyTerry(), max_steps=1)
    pairs = trainer.datamodule.train_pairs
    assert pairs.lists is None and len(pairs) == 19 and all(pair.margin > 0 for pair in pairs)


def test_a_policy_is_trained_on_lists_against_a_reference(tmp_path, policy_folder, file):
    module = PreferenceModule(ModelSpec(path=str(policy_folder)), RankNet(beta=0.1))
    options = {"accelerator": "cpu", "devices": 1, "max_steps": 1, "logger": False, "num_sanity_val_steps": 0}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(**options, limit_val_batches=0, default_root_dir=str(tmp_path), use_distributed_sampler=False)
    data = {"train": file, "mapping": MAPPING, "global_batch": 4}
    trainer.fit(module, datamodule=PreferenceDataModule(**data))
    assert trainer.global_step == 1
    chosen = PreferenceDataModule(**data, selection=Random(keep=0.5))
    with pytest.raises(UsageError, match="reads whole lists of responses, which it would split: leave it out"):
        trainer.fit(PreferenceModule(ModelSpec(path=str(policy_folder)), RankNet(beta=0.1)), datamodule=chosen)


def prepared(policy_folder, path, objective=None, **options):
    data = PreferenceDataModule(train=path, **{"mapping": MAPPING, "val_fraction": 0.0, **options})
    data.open(objective or RankNet(), ModelSpec(path=str(policy_folder)))
    return data.train_pairs


def test_lists_without_an_order_are_counted_by_reason(tmp_path, policy_folder):
    rows = [
        {"prompt": "a :", "responses": [" good", " bad"], "scores": [2.5, 1]},
        {"prompt": "b :", "responses": [" good"], "scores": [2]},
        {"prompt": "c :", "responses": [], "scores": []},
        {"prompt": "d :", "responses": [" good", " bad"], "scores": [3, 3]},
        {"prompt": "e :", "responses": [" good", " bad", " tin"], "scores": [None, 1, 0]},
        {"prompt": "f :", "responses": [" good", ""], "scores": [1, 2]},
    ]
    pairs = prepared(policy_folder, written(tmp_path / "l.jsonl", rows), bad_rows="lenient", max_refused=0.9)
    (report,) = pairs.reports.values()
    kept = [(p.text.prompt, p.text.chosen, p.columns["score"]) for p in pairs]
    assert kept == [("a :", " good", 2.5), ("a :", " bad", 1.0), ("e :", " bad", 1.0), ("e :", " tin", 0.0)]
    assert pairs.lists.sizes.tolist() == [2, 2] and report.lists == 2
    assert dict(report.refused) == {"responses[] is empty": 1}
    assert dict(report.left_out) == {
        "responses[] has fewer than two answers with a score": 2,
        "scores[] is that of every response of its list, which so has no order": 2,
        "scores[] is null, so that this answer cannot be ranked": 1,
        "responses[] is the only response left of its list": 1,
    }
    assert "4 responses in 2 lists of 2 prompts" in str(report)
    with pytest.raises(UserError, match=r"l\.jsonl, line 6: responses\[1\] is empty; give it a text"):
        prepared(policy_folder, str(tmp_path / "l.jsonl"))
    written(tmp_path / "nan.jsonl", [{**rows[0], "scores": [1, float("nan")]}])
    with pytest.raises(UserError, match=r"nan\.jsonl, line 1: scores\[1\] is not a finite number \(nan\)"):
        prepared(policy_folder, str(tmp_path / "nan.jsonl"))


def test_ranks_become_negative_labels_and_grouped_records_keep_their_columns(tmp_path, policy_folder):
    rows = [{"q": f"{w} :", "a": f" {w} {k}", "rank": k, "n": 10 * k, "key": w} for w in ("tin", "oak") for k in (2, 1)]
    mapping = {"kind": "list", "prompt": "q", "group": "key", "responses": "a", "columns": {"size": "n"}, "id": "key"}
    mapping |= {"score": {"path": "rank", "order": "asc"}, "margin": {"scale": 0.5}}
    path = written(tmp_path / "ranks.jsonl", rows)
    pairs = prepared(policy_folder, path, mapping=mapping, columns=["size"])
    assert [(p.id, p.columns["score"], p.columns["size"]) for p in pairs] == [
        *(("tin/0", -1.0, 20.0), ("tin/1", -0.5, 10.0), ("oak/0", -1.0, 20.0), ("oak/1", -0.5, 10.0))
    ]
    (report,) = pairs.reports.values()
    assert report.format == "format given: whole lists of a, prompt q, labels -rank, times 0.5"
    logarithms = mapping | {"score": {"path": "n"}, "margin": {"transform": "log_ratio"}}
    found = [p.columns["score"] for p in prepared(policy_folder, path, mapping=logarithms)]
    assert found == pytest.approx([torch.log(torch.tensor(float(n))).item() for n in (20, 10, 20, 10)])


def test_a_mixture_takes_whole_lists_and_the_same_objective_of_pairs_makes_pairs(tmp_path, policy_folder, file):
    from lit_pref.data.sources.source import Source

    other = written(tmp_path / "other.jsonl", lists(9, seed=1))
    pairs = prepared(policy_folder, [Source(file, count=5), Source(other, count=7)])
    whole = {row["prompt"]: len(row["scores"]) for row in (*lists(22), *lists(9, seed=1))}
    found = [(pairs[int(start)].text.prompt, int(size)) for start, size in zip(pairs.lists.starts, pairs.lists.sizes)]  # noqa: B905
    assert len(pairs.lists) == 12 and all(whole[prompt] >= size for prompt, size in found)
    assert len(pairs) == sum(pairs.lists.sizes) and len({*pairs.ids}) == len(pairs)
    with pytest.raises(UserError, match="has 9 lists and its `count` is 10; no list is taken twice"):
        prepared(policy_folder, Source(other, count=10))
    as_pairs = prepared(policy_folder, file, BradleyTerry())
    assert as_pairs.lists is None and len(as_pairs) == 22 and as_pairs[0].margin > 0


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"mapping": None},
            "pairs.jsonl is read as pairs, whose records are pairs .kind pair., .* of kind list, such as",
        ),
        ({"mapping": {**MAPPING, "filters": {"min_margin": 1.0}}}, "`filters` of the mapping given is for pairs"),
        ({"mapping": {**MAPPING, "margin": {"clip": 1.0}}}, "`margin.clip` of the mapping given is for pairs"),
        ({"ties": "drop"}, "data.ties is drop, which is for pairs"),
    ],
)
def test_pairs_and_options_of_pairs_are_refused_before_training(tmp_path, policy_folder, options, sentence):
    rows = [{"prompt": "a :", "chosen": " good", "rejected": " bad", "margin": 1.0}]
    path = written(tmp_path / "pairs.jsonl", rows if options.get("mapping", 1) is None else lists(3))
    with pytest.raises(UserError, match=sentence):
        prepared(policy_folder, path, **options)


def test_metrics_of_a_list_are_those_of_torchmetrics_and_of_counting():
    rng = random.Random(0)
    for _ in range(20):
        s, y = ([rng.randint(0, 3) for _ in range(5)] for _ in range(2))
        if len({*y}) == 1 or len({*s}) == 1:
            continue
        found = order_metrics(s, y)
        tau = kendall_rank_corrcoef(torch.tensor(s).float(), torch.tensor(y).float(), variant="b")
        assert found["kendall_tau"] == pytest.approx(float(tau), abs=1e-6)
        pairs = [(s[i] > s[j]) + (s[i] == s[j]) / 2 for i in range(5) for j in range(5) if y[i] > y[j]]
        assert found["accuracies"] == pytest.approx(sum(pairs) / len(pairs))
    assert order_metrics([1.0, 1.0, 0.0], [2, 1, 0])["best_first"] == 0.5
    assert order_metrics([1.0, 1.0], [2, 1]) == {"accuracies": 0.5, "kendall_tau": 0.0, "best_first": 0.5}
