"""Values of tokens and extra responses reach the loss alike in both layouts, from live and from stored references."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, make_policy, write_pairs
from lightning.pytorch import Callback
from training_runs import Ran, Run, fit

from lit_pref.data.batching.collation import collate
from lit_pref.data.batching.token_budget import TokenBudget
from lit_pref.errors import UserError
from lit_pref.models.prefix_sharing import enable_prefix_sharing
from lit_pref.objectives.conditional_contrast import ConditionalContrast
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.parts.reference import Geometric
from lit_pref.objectives.parts.temperature import EpsilonStep
from lit_pref.objectives.parts.terms import Anchor
from lit_pref.objectives.parts.tokens import ColumnTokens, EditWeighted
from lit_pref.objectives.selm import SELM
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy
from lit_pref.scores import TokenLogps
from lit_pref.scoring.layout import as_padded
from lit_pref.scoring.scorer import Scorer

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    for name, number, seed in (("pairs", STEPS * 4, 0), ("val", 5, 1)):
        path = write_pairs(folder / f"{name}.jsonl", number, seed=seed)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for k, row in enumerate(rows):
            row["extra_response"] = " " + " ".join(WORDS[k % 5 : k % 5 + 1 + k % 4])
            for side in ("chosen", "rejected"):
                half = len(row[side]) // 2
                row[f"spans_{side}"] = [[0, half, 0.5 + k % 3], [half, len(row[side]), -1.5]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_policy(folder / "policy", seed=0)
    make_policy(folder / "sister", seed=5)
    make_policy(folder / "stranger", seed=6, vocabulary=262)
    return folder


def run_of(folder: Path, **changes: Any) -> Run:
    data = {"train": str(folder / "pairs.jsonl"), "val": str(folder / "val.jsonl"), "global_batch": 4}
    policy = {"path": str(folder / "policy"), "dtype": "float64"}
    return replace(Run(policy=policy, data=data, layout="padded", reference_store=False), **changes)


def one_reference(folder: Path) -> list[Any]:
    return [Pretrained(str(folder / "sister"), dtype="float64")]


def several_references(folder: Path) -> list[Any]:
    others = [Pretrained(str(folder / name), dtype="float64") for name in ("sister", "stranger")]
    return [InitialPolicy(), *others]


OBJECTIVES = {
    "weighted": (lambda: DPO(tokens=ColumnTokens("spans")), one_reference),
    "edited": (lambda: DPO(beta=0.3, tokens=EditWeighted()), one_reference),
    "selm over several references": (lambda: SELM(beta=0.1, alpha=0.5, reference=Geometric()), several_references),
    "selm over edited tokens": (lambda: SELM(beta=0.1, alpha=0.5, tokens=EditWeighted()), one_reference),
    "contrast of prompts": (lambda: ConditionalContrast(beta=0.3, contrast=2.0, terms=[Anchor()]), one_reference),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_alike_in_both_layouts_and_from_live_and_stored_references(name, folder, tmp_path):
    objective, references = OBJECTIVES[name]
    runs = {
        (layout, stored): fit(
            run_of(
                folder,
                objective=objective,
                references=lambda: references(folder),
                layout=layout,
                reference_store=None if stored else False,
            ),
            tmp_path / f"{layout}-{stored}",
        )
        for layout in ("padded", "prefix_shared")
        for stored in (False, True)
    }
    losses = {key: ran.logged.column("train/loss") for key, ran in runs.items()}
    oracle = losses["padded", False]
    assert len(set(oracle)) == STEPS
    for values in losses.values():
        assert values[0] == pytest.approx(oracle[0], abs=1e-10)  # before any gradient
        assert values == pytest.approx(oracle, rel=1e-5, abs=1e-6)
    validation = runs["padded", False].logged.column("val/loss")
    for ran in runs.values():
        assert ran.logged.column("val/loss") == pytest.approx(validation, rel=1e-5, abs=1e-6)


def test_the_chosen_response_is_scored_under_the_same_crop_of_its_prompt_in_every_epoch(folder, tmp_path):
    class Gaps(Callback):
        """The pairs of each micro-batch, and their crops: the ids that the extra response follows."""

        def __init__(self) -> None:
            self.crops: list[dict[str, tuple[int, ...]]] = [{}, {}]

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            rows = as_padded(batch).extra_response.rows
            for name, row, mask, length in zip(
                batch.pairs.ids, rows.input_ids, rows.attention_mask, batch.pairs.chosen_lengths, strict=True
            ):
                self.crops[trainer.current_epoch][name] = tuple(row[mask == 1].tolist()[: -int(length)])

    gaps = Gaps()
    objective = ConditionalContrast(largest=0.5, seed=3)
    run = run_of(folder, objective=lambda: objective, layout="prefix_shared")
    ran = fit(run, tmp_path / "live", max_epochs=2, callbacks=[gaps])
    assert gaps.crops[0] == gaps.crops[1] and len(gaps.crops[0]) == STEPS * 4
    pairs = {pair.id: pair for pair in ran.trainer.datamodule.train_pairs}
    special = frozenset(ran.module.policy.load_tokenizer().all_special_ids)
    for name, crop in gaps.crops[0].items():
        pair = pairs[name]
        assert list(crop) == objective.requirements.extra_function(pair, special)[0]
        assert 0 < len(crop) < len(pair.prompt) and pair.extra_response == pair.chosen
    batch = collate([*pairs.values()], 0, extra_response=True)
    model, scorer = ran.module.scorer.model.eval(), ran.module.scorer.eval()
    with torch.no_grad():
        found = scorer(batch).extra_response.scores
        for pair, score in zip(pairs.values(), found, strict=True):
            ids = torch.tensor([[*gaps.crops[0][pair.id], *pair.chosen]])
            logps = model(input_ids=ids).logits[0, -len(pair.chosen) - 1 : -1].log_softmax(-1)
            assert score.item() == pytest.approx(logps[range(len(pair.chosen)), pair.chosen].sum().item(), abs=1e-10)


def test_a_contrast_of_prompts_needs_references_with_the_policys_tokenizer(folder, tmp_path):
    for stored in (None, False):
        run = run_of(
            folder,
            objective=lambda: ConditionalContrast(reference=Geometric()),
            references=lambda: several_references(folder),
            reference_store=stored,
        )
        with pytest.raises(UserError, match=r"ConditionalContrast changes prompts .*stranger' has a tokenizer of its"):
            fit(run, tmp_path, max_steps=1)


def scored(ran: Ran, layout: Any) -> Any:
    """The validation pairs and their scores by the trained policy."""
    pairs = list(ran.trainer.datamodule.val_pairs)
    enable_prefix_sharing(ran.module.scorer.model)
    made = {"token_functions": ran.module.objective.requirements.token_functions, "extra_response": True}
    batch = collate(pairs, 0, layout=layout, **made)
    with torch.no_grad():
        return pairs, batch, ran.module.scorer(batch, frozenset({TokenLogps()}))


@pytest.fixture(scope="module")
def explored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    run = run_of(folder, objective=lambda: SELM(beta=0.1, tokens=EditWeighted()))
    return fit(run, tmp_path_factory.mktemp("explored"), max_steps=1)


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_a_third_response_gets_the_sum_of_its_own_log_probs_and_nothing_else(explored, layout):
    pairs, _, scores = scored(explored, layout)
    for k, pair in enumerate(pairs):
        with torch.no_grad():
            logits = explored.module.scorer.model(input_ids=torch.tensor([pair.prompt + pair.extra_response])).logits[0]
        logps = logits.log_softmax(-1)[len(pair.prompt) - 1 : -1]
        expected = logps[range(len(pair.extra_response)), pair.extra_response].sum()
        assert scores.extra_response.scores[k].item() == pytest.approx(expected.item(), abs=1e-10)
    assert scores.extra_response.lengths.tolist() == [len(pair.extra_response) for pair in pairs]
    assert scores.extra_response.statistics == {}


def test_edits_stand_beside_the_tokens_that_differ(explored):
    pairs, batch, scores = scored(explored, "prefix_shared")
    marks = batch.pairs.token_column("edits")
    for k, pair in enumerate(pairs):
        for ids, column, side in zip(
            (pair.chosen, pair.rejected), marks, (scores.chosen, scores.rejected), strict=True
        ):
            assert column.shape == side.statistics[TokenLogps()].shape
            assert column[k, len(ids) :].eq(0).all()
        both = [token for token, mark in zip(pair.chosen, marks[0][k], strict=False) if not mark]
        assert both == [token for token, mark in zip(pair.rejected, marks[1][k], strict=False) if not mark]


def test_a_first_reference_that_is_compared_token_by_token_reads_third_responses_too(folder, tmp_path):
    run = run_of(folder, objective=lambda: SELM(beta=0.1, alpha=0.5, temperature=EpsilonStep(0.1)))
    padded, shared = (
        fit(replace(run, layout=layout), tmp_path / layout, max_steps=1).logged.column("train/extra_response_change")
        for layout in ("padded", "prefix_shared")
    )
    assert padded == pytest.approx([0.0], abs=1e-10) and shared == pytest.approx([0.0], abs=1e-10)


def test_a_reference_with_another_tokenizer_is_refused_where_tokens_are_weighed(folder, tmp_path):
    for store in (None, False):
        run = run_of(
            folder,
            objective=lambda: DPO(tokens=EditWeighted()),
            references=lambda: [Pretrained(str(folder / "stranger"))],
            reference_store=store,
        )
        with pytest.raises(UserError, match=r"compares single tokens .* use a reference with the policy's tokenizer"):
            fit(run, tmp_path)


def test_data_without_third_responses_or_token_values_are_refused_by_name(folder, tmp_path):
    plain = write_pairs(folder / "plain.jsonl", 4)
    for objective, missing in ((SELM, "extra_response"), (lambda: DPO(tokens=ColumnTokens("spans")), "spans_chosen")):
        with pytest.raises(UserError, match=f"plain.jsonl.*`{missing}`"):
            fit(run_of(folder, objective=objective, data={"train": str(plain), "global_batch": 4}), tmp_path)


class Taken(Callback):
    """The tokens of every micro-batch, those of the extra responses apart."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.tokens.append((batch.rows.input_ids.numel(), batch.extra_response.rows.input_ids.numel()))


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_a_budget_of_tokens_holds_with_the_third_responses_in_it(folder, tmp_path, layout):
    taken = Taken()
    data = {"train": str(folder / "pairs.jsonl"), "val_fraction": 0.0, "global_batch": 12, "max_tokens": 250}
    ran = fit(run_of(folder, objective=SELM, data=data, layout=layout), tmp_path, callbacks=[taken])
    assert len({id for _, ids in ran.given for id in ids}) == STEPS * 4
    assert all(pair + extra_response <= 250 for pair, extra_response in taken.tokens)
    # Not for want of pairs: with the extra responses left out, fewer forward passes would do.
    without = TokenBudget(250, ran.trainer.datamodule.train_pairs.lengths, layout)
    assert without.least(range(STEPS * 4)) < len(taken.tokens)


def test_a_policy_and_its_copy_in_one_forward_have_the_gradient_of_both(explored):
    """The extra responses are a second reading within one forward: their gradients add up."""
    _, batch, _ = scored(explored, "padded")
    model, scorer = explored.module.scorer.model, Scorer(explored.module.scorer.model)
    weights = [p for p in model.parameters() if p.requires_grad]
    scores = scorer(batch)
    together = torch.autograd.grad((scores.chosen.scores - 2 * scores.extra_response.scores).sum(), weights)
    apart = torch.autograd.grad(scorer(replace(batch, extra_response=None)).chosen.scores.sum(), weights)
    thirds = torch.autograd.grad(scorer(batch.extra_response).chosen.scores.sum(), weights)
    for both, one, other in zip(together, apart, thirds, strict=True):
        torch.testing.assert_close(both, one - 2 * other, rtol=1e-6, atol=1e-8)
