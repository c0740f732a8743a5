"""Every loss of TRL's trainers of pairs, computed by TRL's own code and by the objective here, with their gradients.

The trainers are made without their constructors and get a model that returns given log-probs or logits, so that their
own path from a batch to the loss runs.
"""

import re
import warnings
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer, RewardTrainer

from lit_pref import objectives
from lit_pref.batch import PairData
from lit_pref.objectives.base import Objective
from lit_pref.porting.configuration import DEFAULTS
from lit_pref.porting.losses import LOSSES, PARTS, Loss, part
from lit_pref.porting.objective import objective_of
from lit_pref.scores import PairScores, SequenceScores, TokenLogps

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT, VOCABULARY = 1, 7
PER_PAIR = "every pair counts the same"  # in the differences of losses that TRL averages over tokens
LENGTHS = ([3, 5, 4, 2], [4, 2, 5, 3])
EQUAL = ([4, 4, 4, 4], [3, 5, 4, 2])


@dataclass
class Inputs:
    """The logits of both sides, (B, T, V), with gradient; the ids; and the reference's log-probs of tokens, (B, T)."""

    logits: Tensor  # (2 B, T, V): all chosen, then all rejected
    ids: Tensor  # (2 B, T)
    mask: Tensor  # (2 B, T), 1 for the tokens of a response, and for those below
    reference: Tensor  # (2 B, T)
    prompt: int = 0  # the first tokens of each row that belong to the prompt, after its first token

    def tokens(self) -> Tensor:
        """The policy's log-probs of the response tokens, (2 B, T), 0 elsewhere."""
        logps = self.logits.log_softmax(-1).gather(2, self.ids[..., None])[..., 0]
        return logps * self.mask

    def response(self) -> Tensor:
        """1 for response tokens, (2 B, T)."""
        return self.mask * (torch.arange(self.mask.shape[1]) >= self.prompt)


def inputs(lengths: tuple[list[int], list[int]] = LENGTHS, dtype: torch.dtype = torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(3)
    both = [*lengths[0], *lengths[1]]
    width, rows = max(both), len(both)
    logits = 2 * torch.randn(rows, width, VOCABULARY, generator=generator, dtype=torch.float64)
    mask = (torch.arange(width) < torch.tensor(both)[:, None]).double()
    ids = torch.randint(1, VOCABULARY, (rows, width), generator=generator)
    reference = -2 * torch.rand(rows, width, generator=generator, dtype=torch.float64) * mask
    return Inputs(logits.to(dtype).requires_grad_(), ids, mask.to(dtype), reference.to(dtype))


# TRL's side


def trainer(cls: type, given: Inputs, settings: dict[str, Any]) -> Any:
    """A trainer without its constructor, with the attributes that its loss reads."""
    made: Any = object.__new__(cls)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)
    arguments = SimpleNamespace(
        gradient_checkpointing_kwargs=None,
        discopop_tau=settings.get("discopop_tau"),
        center_rewards_coefficient=settings.get("center_rewards_coefficient"),
    )
    policy: Any = torch.nn.Module()
    policy.is_gradient_checkpointing = False
    made.__dict__ |= settings
    made.__dict__ |= {
        "model": policy,
        "accelerator": accelerator,
        "args": arguments,
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "pad_token_id": 0,
        "padding_value": 0,
        "precompute_ref_logps": False,
        "ref_model": lambda **kwargs: outputs_of(given, given.reference),
        "loss_types": settings.get("loss_type"),
        "loss_weights": settings.get("loss_weights") or [1.0],
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return made


def outputs_of(given: Inputs, logps: Tensor) -> Any:
    """What TRL's fused head returns for a batch, of which it drops the first position."""
    squares = (2 * given.logits.log_softmax(-1)).logsumexp(-1) * given.mask
    zeros = torch.zeros_like(logps)
    return SimpleNamespace(
        log_probs=logps, log_sum_sq_probs=squares, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )


def with_prompt(values: Tensor, fill: float) -> Tensor:
    return torch.cat([values.new_full((len(values), PROMPT), fill), values], 1)


def their_loss(loss: Loss, given: Inputs, settings: dict[str, Any]) -> Tensor:
    ids, mask = with_prompt(given.ids, 5), with_prompt(given.response(), 0).long()
    attention = with_prompt(given.mask, 1).long()
    if loss.trainer == "dpo":
        made = trainer(DPOTrainer, given, settings)
        model: Any = lambda **kwargs: outputs_of(given, given.tokens())  # noqa: E731
        batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": mask}
        return made._compute_loss(model, batch, return_outputs=False)
    if loss.trainer == "reward":
        made = trainer(RewardTrainer, given, settings)
        rewards = given.tokens().sum(1, keepdim=True)
        return made.compute_loss(lambda **kwargs: SimpleNamespace(logits=rewards), {"attention_mask": attention})
    made = trainer(CPOTrainer if loss.trainer == "cpo" else ORPOTrainer, given, settings)
    logits = torch.cat([given.logits, torch.zeros_like(given.logits[:, :1])], 1)  # position t predicts token t + 1
    batch = {}
    for k, side in enumerate(("chosen", "rejected")):
        rows = slice(k * len(ids) // 2, (k + 1) * len(ids) // 2)
        labels = torch.where(mask[rows] == 1, ids[rows], -100)
        batch |= {f"{side}_input_ids": ids[rows], f"{side}_attention_mask": attention[rows], f"{side}_labels": labels}
    return made.get_batch_loss_metrics(lambda *args, **kwargs: SimpleNamespace(logits=logits), batch)[0]


# Our side


def built(spec: Any) -> Any:
    """The object that a value of a configuration names; a test is skipped if the package does not have its class."""
    if isinstance(spec, list):
        return [built(one) for one in spec]
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, dict):
        return spec
    name = spec["class_path"]
    if not hasattr(objectives, name):
        pytest.skip(f"the package has no {name}")
    arguments = {key: built(value) for key, value in spec.get("init_args", {}).items()}
    return getattr(objectives, name)(**arguments)


def our_objective(loss: Loss, settings: dict[str, Any]) -> Objective:
    spec, _ = objective_of(loss.trainer, settings, settings)
    return built(spec)


def our_loss(objective: Objective, given: Inputs) -> Tensor:
    count = len(given.ids) // 2
    lengths = given.response().sum(1).long()

    def pair(whole: Tensor) -> PairScores:
        tokens = whole * given.response()
        squares = (2 * given.logits.log_softmax(-1)).logsumexp(-1) * given.mask
        sides = []
        for rows in (slice(0, count), slice(count, None)):
            statistics: dict[Any, Tensor] = {TokenLogps(): tokens[rows]}
            for need in objective.requirements.statistics - {TokenLogps()}:
                assert type(need).__name__ == "LogSumSquares"
                statistics[need] = squares[rows].sum(1).detach()
            sides.append(SequenceScores(tokens[rows].sum(1), lengths[rows], statistics))
        text = SequenceScores(whole[:count].sum(1), given.mask[:count].sum(1).long())  # of `WholeText`
        return PairScores(*sides, extra_response=text)

    data = PairData([f"pair {k}" for k in range(count)], lengths[:count], lengths[count:])
    data.is_real, data.window_pairs = torch.ones(count, dtype=torch.bool), count
    references = [pair(given.reference)][: objective.requirements.max_references]
    return objective(pair(given.tokens()), references, data).losses.mean()


def both(loss: Loss, given: Inputs, **changes: Any) -> list[tuple[Tensor, Tensor]]:
    """Loss and gradient by the logits, ours and theirs."""
    named: dict[str, Any] = {"loss_type": [loss.name] if loss.trainer == "dpo" else loss.name}
    settings = DEFAULTS[loss.trainer] | (named if loss.name else {}) | changes
    told = settings | ({"loss_type": "simpo", "cpo_alpha": 0.0} if loss.name == "alphapo" else {})
    values = our_loss(our_objective(loss, settings), given), their_loss(loss, given, told)
    return [(value, torch.autograd.grad(value, given.logits, retain_graph=True)[0]) for value in values]


def agree(loss: Loss, given: Inputs, rtol: float = 1e-6, **changes: Any) -> bool:
    (ours, our_gradient), (theirs, their_gradient) = both(loss, given, **changes)
    assert theirs.isfinite() and bool(their_gradient.abs().max() > 0)
    size = float(their_gradient.abs().max())
    return torch.allclose(ours, theirs, rtol=rtol, atol=0) and torch.allclose(
        our_gradient, their_gradient, rtol=rtol, atol=rtol * size
    )


def name_of(loss: Loss) -> str:
    return f"{loss.trainer}-{loss.name}"


SETTINGS: dict[str, dict[str, Any]] = {
    "dpo-exo_pair": {"label_smoothing": 0.01},
    "dpo-robust": {"label_smoothing": 0.1},
    "dpo-aot": {"label_smoothing": 0.1},
    "dpo-aot_unpaired": {"label_smoothing": 0.1},
    "dpo-sppo_hard": {"beta": 0.3},
    "cpo-sigmoid": {"label_smoothing": 0.1, "alpha": 0.05},
    "cpo-simpo": {"label_smoothing": 0.1, "beta": 2.0},
    "cpo-alphapo": {"alpha": 0.25, "beta": 2.0},
    "reward-": {"center_rewards_coefficient": 0.01},
}


@pytest.mark.parametrize("loss", LOSSES, ids=name_of)
def test_the_objective_is_trls_loss(loss: Loss):
    lengths = EQUAL if PER_PAIR in loss.difference else LENGTHS
    assert agree(loss, inputs(lengths), **SETTINGS.get(name_of(loss), {}))


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if PER_PAIR in loss.difference], ids=name_of)
def test_a_mean_over_tokens_differs_where_lengths_do(loss: Loss):
    assert not agree(loss, inputs(LENGTHS), rtol=1e-3, **SETTINGS.get(name_of(loss), {}))


def test_the_cross_entropy_of_orpo_has_the_prompts_tokens_as_trls():
    loss = next(loss for loss in LOSSES if loss.trainer == "orpo")
    given = inputs(([5, 5, 5, 5], [4, 6, 3, 5]))
    given.prompt = 2
    assert agree(loss, given)
    without = built(part("ORPO", lambd=DEFAULTS["orpo"]["beta"]))
    assert not torch.allclose(our_loss(without, given), their_loss(loss, given, DEFAULTS["orpo"]), rtol=1e-2)


def test_the_comparison_sees_another_beta():
    loss = LOSSES[0]
    (ours, _), (theirs, _) = both(loss, inputs())
    other, _ = both(loss, inputs(), beta=0.101)[0]
    assert torch.allclose(ours, theirs, rtol=1e-9) and not torch.allclose(other, theirs, rtol=1e-6)


def test_delta_of_bco_differs_after_a_step():
    objective = our_objective(dpo_loss("bco_pair"), DEFAULTS["dpo"] | {"loss_type": ["bco_pair"]})
    first = our_loss(objective, inputs())
    objective.update(lambda total: total)
    assert not torch.allclose(our_loss(objective, inputs()), first, rtol=1e-3)


def test_discopop_is_nan_in_trl_where_the_policy_is_far_off():
    given = inputs(dtype=torch.float32)
    given.reference[:4] += 300
    (ours, gradient), (theirs, _) = both(dpo_loss("discopop"), given, beta=0.5)
    assert not theirs.isfinite() and ours.isfinite() and bool(gradient.isfinite().all())


def near_reference(dtype: torch.dtype) -> Inputs:
    """Inputs whose log-ratios are small, because divergences grow exponentially."""
    given = inputs(dtype=dtype)
    noise = torch.rand(given.mask.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 0.5
    given.reference = (given.tokens().detach() + noise.to(dtype) * given.mask).to(dtype)
    return given


def dpo_loss(name: str) -> Loss:
    return next(loss for loss in LOSSES if (loss.trainer, loss.name) == ("dpo", name))


OPEN = {kind: [loss.name for loss in LOSSES if loss.trainer == "dpo" and kind in loss.open] for kind in PARTS}


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", OPEN["score"])
def test_an_f_divergence_is_trls(name: str, divergence: str):
    changes = {"f_divergence_type": divergence, "f_alpha_divergence_coef": 0.3, "label_smoothing": 0.1}
    single = divergence == "alpha_divergence"  # TRL bounds its exponent for the dtypes up to fp32
    given = near_reference(torch.float32 if single else torch.float64)
    assert agree(dpo_loss(name), given, rtol=1e-4 if single else 1e-6, **changes)


@pytest.mark.parametrize("name", OPEN["tokens"])
def test_weights_of_tokens_are_trls(name: str):
    assert agree(dpo_loss(name), inputs(), label_smoothing=0.1, ld_alpha=0.3)


@pytest.mark.parametrize("name", [name for name in OPEN["weight"] if name != "hinge"])
def test_weights_of_pairs_are_trls(name: str):
    assert agree(dpo_loss(name), inputs(), label_smoothing=0.1, use_weighting=True)


def test_trl_cannot_weigh_a_hinge():
    built(part("OnPolicyWeight"))
    settings = DEFAULTS["dpo"] | {"loss_type": ["hinge"], "use_weighting": True}
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        their_loss(dpo_loss("hinge"), inputs(), settings).backward()


def test_a_sum_of_losses_is_trls():
    spec, _ = objective_of("dpo", DEFAULTS["dpo"] | {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 0.3]}, {})
    settings = DEFAULTS["dpo"] | {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 0.3]}
    given = inputs(EQUAL)
    torch.testing.assert_close(our_loss(built(spec), given), their_loss(LOSSES[0], given, settings), rtol=1e-6, atol=0)


def test_every_loss_type_of_trl_has_an_objective():
    documented = (DPOConfig.__doc__ or "").partition("loss_type (`list")[2].partition("loss_weights (`list")[0]
    theirs = {"dpo": set(re.findall(r"`'(\w+)'`", documented))}
    theirs["cpo"] = set(CPOConfig.__dataclass_fields__["loss_type"].metadata["choices"])
    assert len(theirs["dpo"]) == 15 and len(theirs["cpo"]) == 5
    for trainer_name, names in theirs.items():
        assert names == {loss.name for loss in LOSSES if loss.trainer == trainer_name}
    missing = {loss.objective for loss in LOSSES if not hasattr(objectives, loss.objective)}
    assert not missing, f"no objective for {missing}"
