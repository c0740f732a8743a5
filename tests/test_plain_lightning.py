"""A Trainer, a module and a data module put together by hand train, resume and export, without the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pairs
from lightning.pytorch import Trainer
from training_runs import differences, logps, trained
from transformers import AutoModelForCausalLM

from lit_pref.batch import PreferenceBatch
from lit_pref.callbacks.run_folder import RunFolder
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.data.selection.criteria import Random
from lit_pref.errors import UserError
from lit_pref.metrics.records import read_parquet
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.base import PairModule, Scored
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.run.export import export

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pairs")
    paths = {"train": write_pairs(folder / "train.jsonl", 12), "val": write_pairs(folder / "val.jsonl", 4, seed=1)}
    return {name: str(path) for name, path in paths.items()}


def fit(spec: ModelSpec, pairs: dict[str, str], folder: Path, epochs: int, ckpt: Path | None = None) -> Trainer:
    """Train as any Lightning module is trained, with Lightning's own checkpoints and logger."""
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=folder)
    module = PreferenceModule(spec, DPO(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    trainer.fit(module, datamodule=PreferenceDataModule(**pairs, global_batch=4), ckpt_path=ckpt and str(ckpt))
    return trainer


def checkpoint_of(trainer: Trainer) -> Path:
    return Path(trainer.checkpoint_callback.best_model_path)


@pytest.mark.parametrize("lora", [None, Lora(r=2, dropout=0.2)])
def test_it_trains_resumes_with_equal_bits_and_exports(
    lora: Lora | None, pairs: dict[str, str], policy_folder: Path, tmp_path: Path
):
    def spec() -> ModelSpec:
        return ModelSpec(path=str(policy_folder), lora=lora, dropout=0.1)

    whole = fit(spec(), pairs, tmp_path / "whole", epochs=2)
    half = fit(spec(), pairs, tmp_path / "half", epochs=1)
    torch.manual_seed(7)  # a resumed process starts with another random state
    rest = fit(spec(), pairs, tmp_path / "rest", epochs=2, ckpt=checkpoint_of(half))
    assert (half.global_step, rest.global_step) == (3, 6)
    first, second = (torch.load(checkpoint_of(ran), weights_only=True) for ran in (whole, rest))
    assert not differences(trained(first), trained(second))
    exported = export(checkpoint_of(rest), tmp_path / "hf")
    assert exported.largest_difference < 1e-4
    records = read_parquet(tmp_path / "rest" / "records" / "val-step=00000006.parquet")
    for column, values in logps(
        AutoModelForCausalLM.from_pretrained(exported.folder), rest.datamodule.val_pairs
    ).items():
        assert records[column] == (values if column == "id" else pytest.approx(values, abs=1e-3))


def test_the_checkpoint_describes_its_model_in_plain_data(pairs: dict[str, str], policy_folder: Path, tmp_path: Path):
    ran = fit(ModelSpec(path=str(policy_folder), seed=3), pairs, tmp_path, epochs=1)
    saved = torch.load(checkpoint_of(ran), weights_only=True)["lit_pref"]
    assert saved["config"] == {} and ModelSpec(**saved["model"]) == ModelSpec(path=str(policy_folder), seed=3)
    assert saved["module_class"] == "lit_pref.modules.preference.PreferenceModule"
    assert saved["objective_class"] == "lit_pref.objectives.dpo.DPO"


def test_a_checkpoint_of_an_older_version_is_refused_in_a_sentence(
    pairs: dict[str, str], policy_folder: Path, tmp_path: Path
):
    spec = ModelSpec(path=str(policy_folder))
    path = checkpoint_of(fit(spec, pairs, tmp_path, epochs=1))
    content = torch.load(path, weights_only=True)
    content["lit_pref"]["format"] = 1
    torch.save(content, path)
    sentence = r"was written by another version of lit_pref \(format 1, this version reads 2\): use the version that"
    with pytest.raises(UserError, match=f"this checkpoint {sentence}"):
        fit(spec, pairs, tmp_path, epochs=2, ckpt=path)
    with pytest.raises(UserError, match=f"ckpt {sentence}"):
        export(path, tmp_path / "hf")


class Alone(PairModule):
    """Scores pairs by the trained model alone, as a module without references does."""

    def scores(self, batch: PreferenceBatch) -> Scored:
        policy = self.scorer(batch, self.objective.requirements.statistics)
        return policy, [], self.objective(policy, [], batch.pairs)


def test_another_module_that_scores_pairs_trains_validates_and_resumes(
    pairs: dict[str, str], policy_folder: Path, tmp_path: Path
):
    def fit_alone(epochs: int, ckpt: Path | None = None, **data: Any) -> Trainer:
        module = Alone(ModelSpec(path=str(policy_folder)), DPO(reference=NoReference()), torch.optim.AdamW)
        trainer = Trainer(accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=tmp_path)
        trainer.callbacks.append(RunFolder(config=""))
        data = PreferenceDataModule(**pairs, global_batch=4, **data)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt and str(ckpt))
        return trainer

    half = fit_alone(epochs=1)
    assert "val/rewards/accuracies" in half.lightning_module.evaluation.last
    assert (tmp_path / "manifest.json").exists()
    assert fit_alone(epochs=2, ckpt=checkpoint_of(half)).global_step == 6
    with pytest.raises(UserError, match=r"Alone cannot select training pairs: leave out data\.selection"):
        fit_alone(epochs=1, selection=Random(keep=0.5))
