"""Two processes (gloo, CPU) do what one does: DDP and FSDP2, whole weights and LoRA, checkpoints and resuming.

All cases run in one pair of processes, which start torch once: this file is their program too.
"""

import json
import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_policy, write_pairs
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from training_runs import Explosive, Ran, Run, differences, environment, fit, logps, trained
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_pref.data.selection.criteria import AlignmentPotential
from lit_pref.errors import UserError
from lit_pref.metrics.records import read_parquet
from lit_pref.models.spec import Lora
from lit_pref.modules.nonfinite import NonfiniteGuard
from lit_pref.modules.preference import MOVED
from lit_pref.modules.sharding import FSDP2
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.hpo import HPO
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.parts.reference import Geometric
from lit_pref.references.moving import BEMAReference, MovingReference
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy
from lit_pref.run.checkpoint_model import read_checkpoint
from lit_pref.run.export import export
from lit_pref.run.lost_process import close_group

pytestmark = pytest.mark.filterwarnings("ignore")
# 17 pairs in windows of 8, 8, 1: the last one leaves one of two ranks a filler. 5 validation pairs leave one too.

TOKENS = 250  # a pair has 41 to 84: two ranks take two micro-batches of the full windows


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.5)  # an optimizer without state cannot resume under FSDP2


def cases(folder: Path) -> dict[str, Run]:
    """The runs, by name."""
    data = {"train": str(folder / "train.jsonl"), "val": str(folder / "val.jsonl"), "global_batch": 8}
    plain = Run(
        policy={"path": str(folder / "tied"), "dtype": "float64"},
        data=data,
        objective=lambda: EpsilonDPO(beta=0.1, epsilon=0.05),
        trainer={"max_epochs": 2, "gradient_clip_val": 0.5},
        layout="prefix_shared",
    )
    lora = replace(plain, policy={**plain.policy, "lora": Lora(r=2)})
    moving = replace(
        plain,
        objective=lambda: DPO(reference=Geometric()),
        references=lambda: [MovingReference(alpha=0.6, every=2), BEMAReference(every=2)],
        optimizer=momentum,
    )
    potential = AlignmentPotential(count=17)
    # Another model: near the policy itself, rounding alone decides whether a response has fallen.
    single = replace(plain, policy={"path": str(folder / "tied")}, objective=MMPO, layout="padded")
    single, rounded = (
        replace(single, references=lambda: [Pretrained(str(folder / "other"))]),
        replace(single, reference_store=False),  # a live one rounds as the policy does
    )
    return {
        "plain": plain,
        "lora": lora,
        "moving": moving,
        "value": replace(
            plain,
            data={**data, **{name: str(folder / f"{name}-graded.jsonl") for name in ("train", "val")}},
            objective=lambda: HPO({"good": 1.0}, value_rate=0.1),
            optimizer=momentum,
        ),
        "tokens": replace(plain, data={**data, "max_tokens": TOKENS}),
        "chosen": replace(plain, data={**data, "train": str(folder / "more.jsonl"), "selection": potential}),
        "single": single,
        "experts": replace(single, policy={"path": str(folder / "experts")}, data={**data, "micro_batch": 2}),
        "bf16": replace(rounded, trainer={**single.trainer, "precision": "bf16-mixed"}, layout="prefix_shared"),
    }


def sharded(distributed: bool) -> ModelParallelStrategy:
    return ModelParallelStrategy(2, 1, save_distributed_checkpoint=distributed)


def strategies() -> dict[str, Any]:
    return {"ddp": DDPStrategy, "fsdp": lambda: sharded(False), "fsdp-distributed": lambda: sharded(True)}


def shardings(folder: Path) -> dict[str, tuple[Run, FSDP2]]:
    """Runs with other settings of FSDP2 than its defaults, by name."""
    plain, bf16 = (cases(folder)[name] for name in ("plain", "bf16"))
    recomputed = replace(plain, policy={**plain.policy, "gradient_checkpointing": True})
    return {
        "replicas": (plain, FSDP2(replicas=2, save_distributed_checkpoint=False)),
        "kept": (plain, FSDP2(reshard_after_forward=False, save_distributed_checkpoint=False)),
        "recomputed": (recomputed, FSDP2(prefetch=1, save_distributed_checkpoint=False)),
        "bf16": (bf16, FSDP2(save_distributed_checkpoint=False)),
        "initial": (
            replace(
                bf16,
                objective=plain.objective,
                references=lambda: [InitialPolicy()],
                reference_store=None,
                trainer={**bf16.trainer, "max_epochs": 1},
            ),
            FSDP2(save_distributed_checkpoint=False),
        ),
        "bf16-fp32-gradients": (bf16, FSDP2(gradients="float32", save_distributed_checkpoint=False)),
    }


COLLECTIVES = {  # by their names in different versions of torch
    "gathered": ("all_gather_single", "all_gather_into_tensor"),
    "summed": ("reduce_scatter_single", "reduce_scatter_tensor"),
}


@contextmanager
def dtypes_in_transit() -> Iterator[dict[str, set[str]]]:
    """Collects the dtypes of gathered weights and of summed gradients."""
    found: dict[str, set[str]] = {kind: set() for kind in COLLECTIVES}

    def watched(kind: str, function: Any) -> Any:
        def collective(*args: Any, **kwargs: Any) -> Any:
            found[kind].add(str(args[0].dtype if args else next(iter(kwargs.values())).dtype))
            return function(*args, **kwargs)

        return collective

    with pytest.MonkeyPatch.context() as patch:
        for kind, names in COLLECTIVES.items():
            for name in names:
                if (function := getattr(torch.distributed, name, None)) is not None:
                    patch.setattr(torch.distributed, name, watched(kind, function))
        yield found


def gathered(value: Any) -> list[Any]:
    """The value of each rank."""
    values: list[Any] = [None, None]
    torch.distributed.all_gather_object(values, value)
    return values


@dataclass
class Program:
    """The program of each of the two processes; `results` are those of both, by name."""

    folder: Path
    results: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, strategy: str | FSDP2, case: Run, at: str, **options: Any) -> Ran:
        data = {**case.data, "micro_batch": None if "max_tokens" in case.data else 2}
        made = strategies()[strategy]() if isinstance(strategy, str) else strategy
        ran = fit(replace(case, data=data), self.folder / at, strategy=made, devices=2, **options)
        given, progress = gathered(ran.given), ran.module.objective.progress
        self.results[name] = {"logged": ran.logged.steps, "given": given, "progress": progress}
        return ran

    def run_cases(self) -> None:
        for strategy in strategies():
            for name, case in cases(self.folder).items():
                if strategy != "fsdp-distributed" or name in ("plain", "lora", "moving"):
                    self.run(f"{name} {strategy}", strategy, case, f"{name}-{strategy}")

    def resume_from_every_form_of_checkpoint(self) -> None:
        for strategy in strategies():
            for name in ("plain", "lora"):
                case = cases(self.folder)[name]
                policy = {**case.policy, "dtype": "float32", "dropout": 0.1}
                case = replace(case, policy=policy, optimizer=adamw, layout="auto")
                at = f"resumed-{name}-{strategy}"
                whole = self.run("", strategy, case, at, every=2)
                fused = [group["fused"] for group in whole.trainer.optimizers[0].param_groups]
                self.results[f"fused {name} {strategy}"] = fused
                for step in (2, 4):
                    self.run("", strategy, case, f"{at}-{step}", ckpt=whole.checkpoint(step))
            if strategy != "ddp":
                case = cases(self.folder)["moving"]
                half = self.run("", strategy, case, f"moving-half-{strategy}", stop_at_step=3)
                self.run("", strategy, case, f"moving-resumed-{strategy}", ckpt=half.checkpoint(3))

    def run_shardings(self) -> None:
        for name, (case, sharding) in shardings(self.folder).items():
            with dtypes_in_transit() as dtypes:
                ran = self.run(f"sharded {name}", sharding, case, f"sharded-{name}")
            kept = {str(p.dtype) for p in ran.module.parameters()}
            states = ran.trainer.optimizers[0].state.values()
            kept |= {str(value.dtype) for state in states for value in state.values()}
            self.results[f"dtypes {name}"] = {**dtypes, "kept": kept}

    def resume_shardings(self) -> None:
        """Whole weights with a stored reference, and adapters with the model below them as reference."""
        for name, replicas in {"shards": 1, "replicas": 2}.items():
            case = replace(cases(self.folder)["bf16"], optimizer=adamw, reference_store=True)
            if name == "replicas":
                lora = {**case.policy, "lora": Lora(r=2)}
                case = replace(case, policy=lora, references=lambda: None, reference_store=None)
            whole = self.run("", FSDP2(replicas), case, f"resumed-{name}", every=2, stop_at_step=3)
            context = whole.module.run_context
            self.results[f"precision {name}"] = [context.precision, context.dtype_in_transit]
            self.run("", FSDP2(replicas), case, f"resumed-{name}-2", ckpt=whole.checkpoint(2), stop_at_step=3)

    def explode(self) -> None:
        """A pair that only one of the ranks has gets an infinite loss."""
        Explosive.bad = self.results["single ddp"]["given"][0][2][1][0]  # rank 0's first of the second optimizer step
        for name, strategy in product(("explosive", "explosive late"), ("ddp", "fsdp")):
            said, NonfiniteGuard.deferred = "nothing", name == "explosive late"
            exploding = replace(cases(self.folder)["single"], objective=Explosive, optimizer=adamw)
            try:
                self.run("", strategy, exploding, f"{name}-{strategy}", log_every_n_steps=100)
            except UserError as error:
                said = str(error)
            except SystemExit as silent:
                said = f"exit {silent.code}"
            self.results[f"{name} {strategy}"] = gathered(said)


def two_processes(folder: Path) -> None:
    """Run the program in one of the two processes; rank 0 writes what both saw."""
    program = Program(folder)
    program.run_cases()
    program.resume_from_every_form_of_checkpoint()
    program.run_shardings()
    program.resume_shardings()
    program.explode()
    if torch.distributed.get_rank() == 0:
        torch.save(program.results, folder / "results.pt")
    torch.distributed.barrier()
    close_group()  # as `Run` does at exit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    make_policy(folder / "tied", seed=0, tie_word_embeddings=True)
    make_policy(folder / "other", seed=5)
    routed = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    make_policy(folder / "experts", 0, model_type="mixtral", output_router_logits=True, **routed)
    write_pairs(folder / "train.jsonl", 17)
    write_pairs(folder / "more.jsonl", 40, seed=2)
    write_pairs(folder / "val.jsonl", 5, seed=1)
    for name in ("train", "val"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        graded = [{**row, "good_chosen": 0.3 * k, "good_rejected": 0.5 + 0.1 * k} for k, row in enumerate(rows)]
        (folder / f"{name}-graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in graded))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [(folder / f"{rank}.log").open("w+") for rank in range(2)]
    program = [sys.executable, __file__, str(folder)]
    ranks = [subprocess.Popen(program, env=environment(k, port), stdout=log, stderr=log) for k, log in enumerate(logs)]
    try:
        codes = [rank.wait(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for log in logs:
        log.seek(0)
    assert codes == [0, 0], "".join(log.read()[-4000:] for log in logs)
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Ran]:
    return {name: fit(case, folder / f"{name}-alone") for name, case in cases(folder).items()}


TIMES = ("per_second", "peak_memory")


def numbers(steps: dict[int, dict[str, float]]) -> dict[str, float]:
    return {
        f"{k} {n}": v
        for k, row in steps.items()
        for n, v in row.items()
        if not n.endswith(TIMES) and "memory" not in n and "per_second" not in n
    }


def final(folder: Path, ran: str) -> dict[str, Any]:
    return read_checkpoint(sorted((folder / ran / "checkpoints").glob("*.ckpt"))[-1])


RELATIVE = {
    "plain": 1e-10,
    "lora": 1e-10,
    "moving": 1e-10,
    "value": 1e-10,
    "tokens": 1e-10,
    "chosen": 1e-10,
    "single": 1e-4,
    "experts": 1e-4,
    "bf16": 3e-2,
}
COMBINED = [
    (name, s)
    for name in RELATIVE
    for s in strategies()
    if s != "fsdp-distributed" or name in ("plain", "lora", "moving")
]


@pytest.mark.parametrize("name, strategy", COMBINED)
def test_two_processes_log_and_learn_what_one_does(folder, seen, alone, name, strategy):
    ran, one = seen[f"{name} {strategy}"], alone[name]
    logged, expected = numbers(ran["logged"]), numbers(one.logged.steps)
    assert logged.keys() == expected.keys()
    assert ran["logged"][6]["train/pairs"] == 1
    for key, value in expected.items():
        assert logged[key] == pytest.approx(value, rel=RELATIVE[name], abs=RELATIVE[name], nan_ok=True), key
    assert ran["progress"] == pytest.approx(one.module.objective.progress, rel=1e-14)
    weights = final(folder, f"{name}-{strategy}")["state_dict"]
    start = {f"scorer.model.{n}": p for n, p in one.module.policy.build().state_dict().items()}
    expected_weights = final(folder, f"{name}-alone")["state_dict"]
    assert weights.keys() == expected_weights.keys()
    gap = sum((weights[n] - w).double().square().sum() for n, w in expected_weights.items()) ** 0.5
    moved = sum((w - start.get(n, w)).double().square().sum() for n, w in expected_weights.items()) ** 0.5
    assert moved > 1e-3
    assert gap <= RELATIVE[name] * moved


@pytest.mark.parametrize("strategy", strategies())
def test_two_processes_see_each_pair_once_an_epoch(seen, strategy):
    ranks = seen[f"plain {strategy}"]["given"]
    for epoch in range(2):
        ids = [[name for at, given in rank if at == epoch for name in given] for rank in ranks]
        assert len(ids[0]) + len(ids[1]) == 17 and len(set(ids[0]) | set(ids[1])) == 17
        assert sorted(len(rank) for rank in ids) == [8, 9]  # the last window: one pair and one filler


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_in_shared_rows_take_the_steps_of_one_in_padded_ones(folder, seen, strategy):
    padded = fit(replace(cases(folder)["plain"], layout="padded"), folder / f"padded-{strategy}")
    expected = padded.logged.column("train/loss")
    found = [row["train/loss"] for _, row in sorted(seen[f"plain {strategy}"]["logged"].items()) if "train/loss" in row]
    # HF's norms round gradients to float32 in both.
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_within_a_token_budget_take_the_steps_of_one_without(seen, alone, strategy):
    ran = seen[f"tokens {strategy}"]
    sizes = [[len(ids) for _, ids in rank] for rank in ran["given"]]
    assert len(sizes[0]) == len(sizes[1]) == 2 * (2 + 2 + 1)
    assert sum(map(sum, sizes)) == 2 * 17 and {0, 1, 2, 3} >= {n for rank in sizes for n in rank} >= {0, 1, 2}
    logged, expected = numbers(ran["logged"]), numbers(alone["plain"].logged.steps)
    assert logged.keys() == expected.keys()
    for key, value in expected.items():
        assert logged[key] == pytest.approx(value, rel=1e-10, abs=1e-10, nan_ok=True), key


@pytest.mark.parametrize("name", ["plain", "lora"])
@pytest.mark.parametrize("strategy", strategies())
def test_two_resumed_processes_end_with_the_same_bits(folder, seen, name, strategy):
    assert seen[f"fused {name} {strategy}"] == [True]
    whole = trained(final(folder, f"resumed-{name}-{strategy}"))
    for step in (2, 4):
        assert differences(trained(final(folder, f"resumed-{name}-{strategy}-{step}")), whole) == []
    if name == "lora":
        assert all("lora_" in key or "scale" in key for key in whole["state_dict"])


@pytest.mark.parametrize("strategy", strategies())
def test_a_moving_reference_is_sharded_saved_whole_and_restored(folder, strategy):
    whole, alone = (final(folder, f"moving-{name}") for name in (strategy, "alone"))
    for k, name in ((0, "reference"), (1, "reference"), (1, "average")):
        moved, expected = whole[MOVED][k][name], alone[MOVED][k][name]
        assert moved.keys() == expected.keys()
        gap = sum((moved[n] - w).square().sum() for n, w in expected.items()) ** 0.5
        behind = sum((w - alone["state_dict"][f"scorer.{n}"]).square().sum() for n, w in expected.items()) ** 0.5
        assert gap <= 1e-10 * behind > 0
    if strategy == "ddp":
        return
    resumed = final(folder, f"moving-resumed-{strategy}")
    assert differences({**trained(resumed), "moved": resumed[MOVED]}, {**trained(whole), "moved": whole[MOVED]}) == []


@pytest.mark.parametrize("name", ["kept", "recomputed", "replicas"])
def test_when_weights_are_gathered_and_how_often_models_are_copied_changes_no_number(folder, seen, name):
    found, expected = seen[f"sharded {name}"], seen["plain fsdp"]
    weights, theirs = (final(folder, at)["state_dict"] for at in (f"sharded-{name}", "plain-fsdp"))
    if name == "replicas":  # with one shard a copy, gradients are summed by another operation
        assert numbers(found["logged"]) == pytest.approx(numbers(expected["logged"]), rel=1e-10, abs=1e-10, nan_ok=True)
        assert all((weights[key] - value).abs().max() < 1e-10 for key, value in theirs.items())
    else:
        assert differences(numbers(found["logged"]), numbers(expected["logged"])) == []
        assert differences(weights, theirs) == []


def test_weights_and_gradients_travel_in_bf16_beside_fp32_master_weights(folder, seen):
    half, whole = {"torch.bfloat16"}, {"torch.float32"}
    names = ("bf16", "bf16-fp32-gradients")
    assert [seen[f"dtypes {name}"]["gathered"] for name in names] == [half, half]
    assert [seen[f"dtypes {name}"]["summed"] for name in names] == [half, whole]
    for name in names:
        assert seen[f"dtypes {name}"]["kept"] == whole
        assert {str(t.dtype) for t in final(folder, f"sharded-{name}")["state_dict"].values()} == whole


@pytest.mark.parametrize("name", ["bf16", "bf16-fp32-gradients"])
def test_weights_in_bf16_in_transit_learn_what_bf16_mixed_does_up_to_its_rounding(folder, seen, alone, name):
    logged, expected = (numbers(seen[key]["logged"]) for key in (f"sharded {name}", "bf16 ddp"))
    losses = [key for key in expected if key.endswith("train/loss")]
    assert [logged[key] for key in losses] == pytest.approx([expected[key] for key in losses], rel=5e-2, abs=5e-2)
    weights, theirs = (final(folder, at)["state_dict"] for at in (f"sharded-{name}", "bf16-ddp"))
    start = {f"scorer.model.{n}": p for n, p in alone["bf16"].module.policy.build().state_dict().items()}
    gap = sum((weights[n] - w).double().square().sum() for n, w in theirs.items()) ** 0.5
    moved = sum((w - start[n]).double().square().sum() for n, w in theirs.items()) ** 0.5
    assert gap < 0.1 * moved


def test_a_reference_with_weights_of_its_own_travels_as_the_policy_does(seen):
    first, later = (seen["sharded initial"]["logged"][step] for step in (1, 2))
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    # Were they rounded in different ways, the signs of their differences would move beta.
    assert first["train/rewards/margins"] == first["train/epsilon_step"] == 0 != later["train/epsilon_step"]
    assert first["train/state/beta"] == 0.1 != later["train/state/beta"]


@pytest.mark.parametrize("name", ["shards", "replicas"])
def test_sharded_runs_in_bf16_resume_to_the_same_bits_and_can_be_exported(folder, seen, name):
    # The key of stored scores contains this, because other weights in transit give other scores.
    assert seen[f"precision {name}"] == ["bf16-mixed", "bfloat16"]
    whole, resumed = (trained(final(folder, at)) for at in (f"resumed-{name}", f"resumed-{name}-2"))
    assert differences(resumed, whole) == []
    ran = folder / f"resumed-{name}"
    exported = export(ran / "checkpoints" / "step=00000003.ckpt", ran / "hf")
    assert exported.pairs == 8 and exported.largest_difference < 1e-1  # of bf16 and fp32


@pytest.mark.parametrize("name", ["explosive", "explosive late"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_both_and_only_the_first_speaks(folder, seen, name, strategy):
    first, second = seen[f"{name} {strategy}"]
    assert first.startswith("the loss of 1 pair(s) is not finite at step")
    assert first == seen[f"explosive {strategy}"][0] and second == "exit 0"
    assert not (folder / f"{name}-{strategy}" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["plain", "lora"])
@pytest.mark.parametrize("strategy", strategies())
def test_what_is_exported_from_every_form_of_checkpoint_scores_as_the_run_did(folder, alone, name, strategy):
    ran = folder / f"resumed-{name}-{strategy}"
    path = ran / "checkpoints" / "step=00000006.ckpt"
    assert path.is_dir() == (strategy == "fsdp-distributed")
    exported = export(path, ran / "hf")
    assert exported.pairs == 8 and exported.largest_difference < 1e-4
    AutoTokenizer.from_pretrained(ran / "hf")
    model = AutoModelForCausalLM.from_pretrained(ran / "hf")
    records = read_parquet(ran / "records" / "val-step=00000006.parquet")
    for column, values in logps(model, alone[name].trainer.datamodule.val_pairs).items():
        assert records[column] == (values if column == "id" else pytest.approx(values, abs=1e-3))


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
