"""Both sides of the bench do the same work, and the rivals are what they are called."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import trl.trainer.utils
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import bench_ours
import bench_trl
from bench_ours import Ours
from bench_profile import ProfiledLoop, gemms
from bench_steps import Loop
from bench_trl import Trl
from bench_work import ADAMW, Work, quiet

from lit_pref.scoring.scorer import Scorer

WORK = Work("smoke", "smoke", 300, pairs=3, windows=4)
LORA = Work("smoke", "smoke", 300, pairs=3, windows=4, lora=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet()
    folder = tmp_path_factory.mktemp("bench")
    WORK.write(folder, references=2)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _a_rate_that_moves_the_loss() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (bench_ours, bench_trl):
            patch.setattr(module, "ADAMW", {**ADAMW, "lr": 1e-2, "eps": 1e-3})
        yield


def losses(contender: Ours | Trl, folder: Path, work: Work = WORK) -> list[float]:
    loop = Loop()
    contender.train(work, folder, loop)
    return loop.losses


@pytest.fixture(scope="module")
def theirs(folder: Path) -> list[float]:
    return losses(Trl(), folder)


@pytest.mark.parametrize("ours", [Ours(layout="prefix_shared"), Ours(layout="padded"), Ours(stored=False)])
def test_the_losses_of_both_sides_are_equal(ours: Ours, folder: Path, theirs: list[float]):
    own = losses(ours, folder)
    assert len(own) == WORK.windows
    assert own[0] == pytest.approx(math.log(2), rel=1e-5)
    assert abs(own[-1] - math.log(2)) > 3e-3
    assert own == pytest.approx(theirs, rel=5e-5)


def test_the_losses_of_both_sides_are_equal_with_the_same_adapters(folder: Path):
    own = losses(Ours(), folder, LORA)
    assert abs(own[-1] - math.log(2)) > 5e-4
    assert own == pytest.approx(losses(Trl(), folder, LORA), rel=2e-5)


def test_the_adapters_for_trl_are_ours_and_leave_its_attention_alone(folder: Path, tmp_path: Path):
    (tmp_path / "policy").symlink_to(folder / "policy")
    torch.backends.cuda.enable_cudnn_sdp(True)
    adapters = torch.load(LORA.write_adapters(tmp_path))
    assert torch.backends.cuda.cudnn_sdp_enabled()
    weights = LORA.policy(folder).build().state_dict()
    assert adapters.keys() == {name for name in weights if "lora_" in name} != set()
    assert all(torch.equal(adapters[name], weights[name]) for name in adapters)


def test_both_sides_have_the_same_number_of_loaders(folder: Path, monkeypatch: pytest.MonkeyPatch):
    data = mock.Mock()
    monkeypatch.setattr(bench_ours, "PreferenceDataModule", data)
    monkeypatch.setattr(bench_ours, "bare_trainer", mock.Mock())
    bench_ours.fit(mock.Mock(), WORK, folder, Loop(), "gpu")
    theirs = bench_trl.arguments(WORK, folder, "gpu", bf16=True)["dataloader_num_workers"]
    assert data.call_args.kwargs["workers"] == theirs > 0


@pytest.mark.parametrize("rival", [Trl(metrics=False), Trl(compact=False, stored=False, checkpointing=True)])
def test_every_form_of_trl_finds_the_same_losses(rival: Trl, folder: Path, theirs: list[float]):
    assert losses(rival, folder) == pytest.approx(theirs, rel=1e-4)


def test_both_sides_read_the_same_responses_in_the_same_batches(folder: Path, monkeypatch: pytest.MonkeyPatch):
    ours: list[list[list[int]]] = []
    other: list[list[list[int]]] = []
    forward, compute = Scorer.forward, bench_trl._Tokenized.compute_loss

    def keep_ours(self: Any, batch: Any, *options: Any, **more: Any) -> Any:
        if self.training:  # not the reference
            rows = batch.rows
            ours.append([rows.targets[rows.sequences == k].tolist() for k in range(rows.num_sequences)])
        return forward(self, batch, *options, **more)

    def keep_theirs(self: Any, model: Any, inputs: dict[str, Tensor], *arguments: Any, **options: Any) -> Any:
        rows = zip(inputs["input_ids"], inputs["completion_mask"], strict=True)
        other.append([ids[own == 1].tolist() for ids, own in rows])
        return compute(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(Scorer, "forward", keep_ours)
    monkeypatch.setattr(bench_trl._Tokenized, "compute_loss", keep_theirs)
    losses(Ours(), folder)
    losses(Trl(), folder)
    assert ours == other
    pairs = WORK.in_order()
    assert ours[1] == [p["chosen"] for p in pairs[3:6]] + [p["rejected"] for p in pairs[3:6]]


@pytest.mark.parametrize(("compact", "metrics"), [(True, True), (True, False), (False, True)])
def test_trl_compact_projects_the_responses_and_trl_as_installed_everything(
    compact: bool, metrics: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    projected: list[int] = []
    fields: list[tuple[str, ...]] = []
    real = trl.trainer.utils._ChunkedLogProbFunction

    class Spy:
        @staticmethod
        def apply(hidden: Tensor, *arguments: Any) -> Any:
            projected.append(len(hidden))
            fields.append(arguments[-1])
            return real.apply(hidden, *arguments)

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Spy)
    losses(Trl(compact=compact, metrics=metrics), folder)
    window = WORK.in_order()[-3:]
    responses = [len(pair[side]) for pair in window for side in ("chosen", "rejected")]
    rows = [len(pair["prompt"]) + len(pair[side]) for pair in window for side in ("chosen", "rejected")]
    assert projected[-1] == (sum(responses) if compact else len(rows) * (max(rows) - 1))
    assert fields[-1] == (("log_probs", "entropy", "mean_logits", "is_top1") if metrics else ("log_probs",))


def test_several_references_are_several_models(folder: Path):
    live = losses(Ours(stored=False, references=2), folder)
    assert live[0] != pytest.approx(math.log(2), rel=1e-4)  # what the initial policy alone would give
    assert losses(Ours(references=2), folder) == pytest.approx(live, rel=1e-4)


def test_a_profiled_step_has_the_fewest_products_of_matrices(folder: Path):
    """With so few ids the head keeps its logits, so that no product is computed twice."""
    loop = ProfiledLoop(skipped=1)
    Ours().train(WORK, folder, loop)
    assert gemms(loop.profiler.events()) == loop.least_gemms > 0
