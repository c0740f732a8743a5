"""The router loss of mixture-of-experts models: the model's own, weighted by pairs, in the training loss alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_policy, write_pairs
from training_runs import Run, fit
from transformers import AutoConfig, AutoModelForCausalLM

from lit_pref.check.check import _router
from lit_pref.data.batching.collation import collate
from lit_pref.errors import UsageError
from lit_pref.models.experts import router_line, router_weight
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.sft import SFT
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.run.first_lines import FirstLines
from lit_pref.scoring.scorer import Scorer

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0}
SMALL |= {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SMALL |= {"shared_expert_intermediate_size": 16}
TEXT = TruncatedText("", "", "", True, True)
IDS = [([5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15]), ([16], [17, 18, 19], [20])]


def test_a_mixture_of_experts_computes_in_float64(tmp_path: Path):
    policy = make_policy(tmp_path / "tokens", seed=3, vocabulary=300)
    config = {"model_type": "mixtral", **{k: v for k, v in SMALL.items() if k != "vocab_size"}}
    spec = ModelSpec(config=config, tokenizer=str(policy), dtype="float64")
    ids = torch.tensor([[5, 6, 7]])
    drawn: Any = spec.build()
    drawn.save_pretrained(tmp_path / "moe")
    read: Any = ModelSpec(path=str(tmp_path / "moe"), tokenizer=str(policy), dtype="float64").build()
    assert torch.equal(drawn(input_ids=ids).logits, read(input_ids=ids).logits)
    drawn.float()
    torch.testing.assert_close(drawn(input_ids=ids).logits.double(), read(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("full_logits", [False, True])
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_the_router_loss_and_its_gradient_are_those_of_the_model(kind: str, full_logits: bool):
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL))
    batch = collate([PreferencePair("", *ids, None, None, {}, None, TEXT) for ids in IDS], pad_id=0)
    labels = torch.full_like(batch.rows.input_ids, -100)
    rows = {"input_ids": batch.rows.input_ids, "attention_mask": batch.rows.attention_mask, "labels": labels}
    model.router_aux_loss_coef = 1.0
    theirs = model(**rows, output_router_logits=True)
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if "head" not in n], strict=True)
    expected = torch.autograd.grad(theirs.aux_loss, parameters, allow_unused=True)

    scorer = Scorer(model).train()
    scorer.full_logits, scorer.router_weight = full_logits, 0.5
    scores = scorer(batch)
    torch.testing.assert_close(scores.router_loss, theirs.aux_loss, rtol=1e-6, atol=0)
    ours = torch.autograd.grad(scores.router_loss, parameters, allow_unused=True, retain_graph=True)
    gates = [grad for name, grad in zip(names, ours, strict=True) if "gate" in name and grad is not None]
    assert max(grad.abs().max() for grad in gates) > 1e-6
    for name, one, other in zip(names, ours, expected, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7, msg=name)
    # Padding is not counted, and the scores are those of a model without a router loss.
    unmasked = model(input_ids=batch.rows.input_ids, output_router_logits=True).aux_loss
    assert (unmasked - scores.router_loss).abs() > 1e-4
    scorer.router_weight = 0.0
    assert scorer(batch).router_loss is None
    assert torch.equal(scorer(batch).chosen.scores, scores.chosen.scores)
    scorer.router_weight = 0.5
    assert scorer.eval()(batch).router_loss is None


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "mixtral"
    config = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    return make_policy(folder, 0, model_type="mixtral", output_router_logits=True, router_aux_loss_coef=0.5, **config)


def run_of(folder: Path, tmp_path: Path, objective: Any, **policy: Any) -> Run:
    write_pairs(tmp_path / "train.jsonl", 7)
    write_pairs(tmp_path / "val.jsonl", 3, seed=1)
    data = {"train": str(tmp_path / "train.jsonl"), "val": str(tmp_path / "val.jsonl"), "global_batch": 7}
    policy = {"path": str(folder), "attention": "eager", **policy}
    return Run(policy, {**data, "micro_batch": 3}, objective, trainer={"max_steps": 1})


@pytest.mark.parametrize("objective", [DPO, SFT])
def test_a_step_takes_the_mean_over_its_pairs_of_the_router_loss_of_their_micro_batch(
    objective: Any, experts: Path, tmp_path: Path
):
    ran = fit(run_of(experts, tmp_path, objective), tmp_path / "on")
    model = ModelSpec(str(experts), attention="eager").build()
    scorer = Scorer(model)
    scorer.router_weight = 1.0
    pairs = {pair.id: pair for pair in (ran.trainer.datamodule.train_pairs[k] for k in range(7))}
    step = torch.zeros(())
    losses = torch.zeros(())
    assert sorted(len(ids) for _, ids in ran.given) == [2, 2, 3]
    for _, ids in ran.given:
        batch = collate([pairs[name] for name in ids], pad_id=0)
        if objective is SFT:
            one_sided = [
                PreferencePair(name, pairs[name].prompt, pairs[name].chosen, None, None, None, {}, None, TEXT)
                for name in ids
            ]
            batch = collate(one_sided, pad_id=0)
        scores = scorer(batch)
        frozen = Scorer(model).eval()
        with torch.no_grad():
            references = [] if objective is SFT else [frozen(batch)]
        step = step + objective()(scores, references, batch.pairs).losses.sum() / 7
        step = step + 0.5 * scores.router_loss * len(ids) / 7
        losses = losses + scores.router_loss.detach() * len(ids) / 7
    step.backward()
    trained = ran.module.scorer.model.state_dict()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach() - 0.05 * parameter.grad, rtol=1e-5, atol=1e-6)
    assert ran.logged.column("train/router_loss") == pytest.approx([float(losses)], rel=1e-5)


def test_zero_is_off_and_references_and_validation_have_none(experts: Path, tmp_path: Path):
    on = fit(run_of(experts, tmp_path, DPO), tmp_path / "on")
    off = fit(run_of(experts, tmp_path, DPO, router_loss=0.0), tmp_path / "off")
    more = fit(run_of(experts, tmp_path, DPO, router_loss=5.0), tmp_path / "more")
    assert not off.logged.column("train/router_loss")
    gates = [ran.module.scorer.model.state_dict()["model.layers.0.mlp.gate.weight"] for ran in (on, off, more)]
    assert not torch.equal(gates[0], gates[1]) and not torch.equal(gates[0], gates[2])
    assert on.logged.column("train/loss") == off.logged.column("train/loss")  # that of the objective
    assert not [name for numbers in on.logged.steps.values() for name in numbers if name.startswith("val/router")]
    lora = fit(run_of(experts, tmp_path, DPO, lora=Lora(r=2)), tmp_path / "lora")
    assert len(lora.logged.column("train/router_loss")) == 1


def test_the_weight_is_that_of_the_configuration_or_as_asked(policy_folder: Path):
    mixtral = AutoConfig.for_model("mixtral", output_router_logits=True, router_aux_loss_coef=0.25)
    assert router_weight(mixtral, None) == 0.25 and router_weight(mixtral, 0.0) == 0 and router_weight(mixtral, 2) == 2
    assert router_weight(AutoConfig.for_model("mixtral"), None) == 0
    assert router_weight(AutoConfig.for_model("llama"), None) == 0
    assert router_line(AutoConfig.for_model("llama"), None) is None
    with pytest.raises(UsageError, match=r"policy\.router_loss is 1, and a llama has no experts to balance"):
        router_weight(AutoConfig.for_model("llama"), 1.0)
    with pytest.raises(UsageError, match=r"transformers computes no router loss for a deepseek_v3: set it to 0"):
        router_weight(AutoConfig.for_model("deepseek_v3"), 1.0)
    llama = {"model_type": "llama"}
    with pytest.raises(UsageError, match=r"a llama has no experts"):
        ModelSpec(config=llama, tokenizer=str(policy_folder), router_loss=1.0).configuration()
    with pytest.raises(UsageError, match=r"policy\.router_loss is -1: it must be 0 or above"):
        ModelSpec("nowhere", router_loss=-1)


@pytest.mark.parametrize("asks", [True, False])
def test_the_first_lines_and_check_say_whether_the_router_loss_is_on(
    asks: bool, policy_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    config = {"model_type": "mixtral", "router_aux_loss_coef": 50.0, "output_router_logits": asks}
    module = SimpleNamespace(spec=ModelSpec(config=config, tokenizer=str(policy_folder)), fitted=[], seed=0)
    module.batch_layout, module.layout_reason = "padded", "as asked"
    module.data = SimpleNamespace(workers=None, loading={"workers": 0, "pin_memory": False})
    options = SimpleNamespace(split_seed=0)
    monkeypatch.setattr(
        "lit_pref.run.first_lines.steps_of", lambda module: SimpleNamespace(warnings=list, lines=list, validation=str)
    )
    trainer = SimpleNamespace(
        accumulate_grad_batches=1,
        datamodule=SimpleNamespace(seed=0, options=options),
        ckpt_path=None,
        optimizers=[torch.optim.SGD([torch.zeros(1)], lr=0.1)],
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    words = (
        "the router loss of the policy's experts is on: the training loss has 50 times it added"
        if asks
        else "its router loss is off (its configuration has router_aux_loss_coef 50)"
    )
    FirstLines().on_fit_start(trainer, module)  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert words in printed and ("warning" in printed) != asks
    (finding,) = _router(module)  # type: ignore[arg-type]
    assert finding.severity == ("ok" if asks else "warning") and words in finding.says
