"""The gold reward of responses after each validation, and win rate, KL and accuracy against the initial policy."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from training_runs import Run, fit, logps
from transformers import AutoConfig, AutoModelForCausalLM

from lit_pref.callbacks.gold_reward import BEST, GOLD, GoldOfBest, GoldReward
from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.models.word_tokenizer import save_word_tokenizer
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.sft import SFT
from lit_pref.objectives.simpo import SimPO
from lit_pref.scoring.scorer import Scorer
from lit_pref.testbed.samples import evaluate
from lit_pref.testbed.world import BOS, EOS, PAD, VOCABULARY, Prompt, gold_reward

PROMPTS = ["4 metal down lead plain 5 6 :", "3 animal up cat warm 1 2 :"] * 40
PAIRS = [(" tin", " zinc"), (" tin tin zinc", " tin"), (" zinc tin", " tin zinc"), (" zinc", " zinc zinc tin")]
"""Chosen and rejected responses, to each of the two prompts."""


def write_policy(folder: Path, probabilities: dict[str, float]) -> Path:
    """The HF folder of a policy that writes each word with its probability, whatever came before."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ids = {"bos_token_id": VOCABULARY.index(BOS), "eos_token_id": VOCABULARY.index(EOS)}
    config = AutoConfig.for_model("phi", vocab_size=len(VOCABULARY), max_position_embeddings=64, **small, **ids)
    config.pad_token_id = VOCABULARY.index(PAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.fill_(-1e4)
        for word, probability in probabilities.items():
            model.lm_head.bias[VOCABULARY.index(word)] = math.log(probability)
    model.save_pretrained(folder)
    return Path(save_word_tokenizer(folder, VOCABULARY, PAD, BOS, EOS))


@pytest.fixture
def callback(tmp_path: Path) -> GoldReward:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    rows = [
        {"prompt": text, "chosen": chosen, "rejected": rejected} for text in PROMPTS[:2] for chosen, rejected in PAIRS
    ]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train.jsonl").write_text("")
    callback = GoldReward()
    datamodule = SimpleNamespace(train=str(tmp_path / "train.jsonl"))
    trainer: Any = SimpleNamespace(strategy=None, datamodule=datamodule)
    callback.setup(trainer, SimpleNamespace(spec=SimpleNamespace(head="lm")), "fit")  # type: ignore[arg-type]
    return callback


def test_the_numbers_are_those_of_the_testbed_and_the_kl_is_that_of_the_words(callback: GoldReward, tmp_path: Path):
    initial = ModelSpec(path=str(write_policy(tmp_path / "initial", {"zinc": 0.5, "tin": 0.3, EOS: 0.2})))
    trained = ModelSpec(path=str(write_policy(tmp_path / "trained", {"zinc": 0.2, "tin": 0.4, EOS: 0.4})))
    model = trained.build()
    before = torch.get_rng_state()
    numbers = callback.measure(SimpleNamespace(spec=initial, scorer=Scorer(model)))
    assert torch.equal(torch.get_rng_state(), before), "training draws the same numbers with and without it"
    alone = evaluate(model, trained.load_tokenizer(), [Prompt.parse(text) for text in PROMPTS])
    assert list(numbers) == list(GOLD)
    assert (numbers["testbed/gold_sampled"], numbers["testbed/gold_greedy"]) == (alone.g1, alone.g0)
    ratio = {"zinc": math.log(0.2 / 0.5), "tin": math.log(0.4 / 0.3), EOS: math.log(0.4 / 0.2)}
    by_hand = sum(ratio[word] for words in alone.sampled for word in words) / len(PROMPTS)
    assert numbers["testbed/kl"] == pytest.approx(by_hand, abs=1e-5) and by_hand > 0
    # tin is worth 0.288 and zinc -0.916: right, wrong, a tie (the same words), and right, to each prompt.
    assert numbers["testbed/accuracy"] == pytest.approx(2.5 / 4)
    same = callback.measure(SimpleNamespace(spec=initial, scorer=Scorer(initial.build())))
    assert (same["testbed/win_rate"], same["testbed/kl"], same["testbed/accuracy"]) == (0.5, 0.0, 0.5)


def test_the_accuracy_is_against_the_initial_policy_for_every_objective(tmp_path: Path):
    sides = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in PAIRS]
    trained_on = ["2 metal up tin warm 3 4 :", "2 metal up zinc warm 3 4 :"]
    for name, prompts in (("train", trained_on), ("val", PROMPTS[:2]), ("prompts", PROMPTS[:2])):
        rows = [{"prompt": text, **side} for text in prompts for side in sides]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    initial = {"path": str(write_policy(tmp_path / "initial", {"zinc": 0.5, "tin": 0.3, EOS: 0.2}))}
    data = {"train": str(tmp_path / "train.jsonl"), "val": str(tmp_path / "val.jsonl"), "global_batch": 4}
    # The accuracy of DPO's rewards is the same, that of SimPO's is another, and SFT's pairs have no rejected response.
    before, pairs = {DPO: 0.5, SimPO: 1.5 / 4, SFT: None}, None
    for objective, own_before in before.items():
        run = Run(initial, data, objective)
        ran = fit(run, tmp_path / objective.__name__, callbacks=[GoldReward()], num_sanity_val_steps=-1)
        assert ran.logged.steps[0].get("val/rewards/accuracies") == own_before, objective
        assert ran.logged.steps[0]["testbed/accuracy"] == 0.5
        pairs = pairs or list(ran.module.data.val_pairs)
        start, end = logps(ModelSpec(**initial).build(), pairs), logps(ran.module.scorer.model, pairs)
        chosen, rejected = (
            [now - then for now, then in zip(end[side], start[side], strict=True)]
            for side in ("chosen_logp", "rejected_logp")
        )
        by_hand = sum(right > wrong for right, wrong in zip(chosen, rejected, strict=True)) / len(pairs)
        trained = ran.logged.steps[2]
        assert trained["testbed/accuracy"] == pytest.approx(by_hand), objective
        if objective is DPO:
            assert trained["val/rewards/accuracies"] == pytest.approx(by_hand) and by_hand != 0.5


def test_it_is_refused_where_it_cannot_measure(tmp_path: Path):
    trainer: Any = SimpleNamespace(strategy=None, datamodule=SimpleNamespace(train=str(tmp_path / "pairs.jsonl")))
    (tmp_path / "pairs.jsonl").write_text("")
    policy: Any = SimpleNamespace(spec=SimpleNamespace(head="lm"))
    with pytest.raises(UsageError, match=r"prompts.jsonl has no prompts of the testbed .*or leave the callback out"):
        GoldReward().setup(trainer, policy, "fit")
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"val.jsonl has no pairs of the testbed .*or leave the callback out"):
        GoldReward().setup(trainer, policy, "fit")
    with pytest.raises(UsageError, match="GoldReward needs a policy"):
        GoldReward().setup(trainer, SimpleNamespace(spec=SimpleNamespace(head="scalar")), "fit")  # type: ignore[arg-type]
    trainer.strategy = ModelParallelStrategy()
    with pytest.raises(UsageError, match="whole on each device"):
        GoldReward().setup(trainer, policy, "fit")


def test_the_best_of_n_is_chosen_by_the_scores_of_the_reward_model(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS[:10]))
    folder = write_policy(tmp_path / "policy", {"zinc": 0.4, "cat": 0.2, "total": 0.1, "11": 0.1, EOS: 0.2})
    spec = ModelSpec(path=str(folder), head="scalar")
    trainer: Any = SimpleNamespace(strategy=None, datamodule=None)
    callback = GoldOfBest(samples=4, prompts=str(tmp_path / "prompts.jsonl"))
    trainer.datamodule = SimpleNamespace(train=str(tmp_path / "train.jsonl"))
    (tmp_path / "train.jsonl").write_text("")
    callback.setup(trainer, SimpleNamespace(spec=spec), "fit")  # type: ignore[arg-type]
    gold = callback._gold  # (10, 4): recomputed from the ids that the reward model reads
    prompts = [Prompt.parse(text) for text in PROMPTS[:10]]
    words = [[VOCABULARY[number] for number in pair.chosen] for pair in callback._pairs]
    again = [gold_reward(prompts[k // 4], response) for k, response in enumerate(words)]
    assert gold.flatten().tolist() == pytest.approx(again) and len({round(value, 3) for value in again}) > 4

    def measured(sign: float) -> float:
        def scorer(batch: Any) -> Any:
            scores = torch.tensor([sign * float(gold.flatten()[int(name)]) for name in batch.pairs.ids])
            return SimpleNamespace(chosen=SimpleNamespace(scores=scores))

        numbers = callback.measure(SimpleNamespace(spec=spec, scorer=scorer, device="cpu"))
        assert list(numbers) == list(BEST)
        return numbers["testbed/gold_best"]

    assert measured(1.0) == pytest.approx(float(gold.amax(1).mean()))
    assert measured(-1.0) == pytest.approx(float(gold.amin(1).mean()))
    with pytest.raises(UsageError, match="GoldOfBest needs a reward model"):
        GoldOfBest().setup(trainer, SimpleNamespace(spec=SimpleNamespace(head="lm")), "fit")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="samples must be at least 2, got 1"):
        GoldOfBest(samples=1)
