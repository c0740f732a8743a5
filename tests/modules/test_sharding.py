"""Settings of FSDP2, its dtypes within a model, and launches on several nodes; its runs are in test_distributed.py."""

import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, write_pairs
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import FSDPStrategy
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from training_runs import Run, fit

from lit_pref.data.batching.collation import collate
from lit_pref.errors import UsageError
from lit_pref.models.prefix_sharing import enable_prefix_sharing
from lit_pref.models.reward import reward_scorer
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.sharding import FSDP2, refuse_fsdp1, shard, trained_dtypes
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy
from lit_pref.run.config import module_of, resolve, run_parser
from lit_pref.run.run import assemble
from lit_pref.scores import Kl, PromptValue
from lit_pref.scoring.scorer import Scorer, score_readout
from lit_pref.scoring.value import ValueHead

IDS = [([5, 6, 7], [9, 10, 11, 12], [14, 15]), ([8], [13], [16, 17, 18])]
TEXT = TruncatedText("", "", "", True, True)
PAIRS = [PreferencePair(str(k), *ids, None, None, {}, None, TEXT) for k, ids in enumerate(IDS)]
BF16 = MixedPrecision("bf16-mixed", "cpu")


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def strategy_with(precision: Precision, **settings: Any) -> FSDP2:
    """The strategy of a run of this precision."""
    strategy = FSDP2(**settings)
    strategy._precision_plugin = precision
    return strategy


def placed(strategy: FSDP2) -> FSDP2:
    """A strategy as in a run in bf16-mixed, on the devices of this process group."""
    devices = torch.distributed.get_world_size()
    strategy._device_mesh = init_device_mesh("cpu", (devices, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    strategy._precision_plugin = BF16
    return strategy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"parameters": "fp8"}, "parameters is 'fp8'; use float32 or bfloat16"),
        ({"gradients": "float16"}, "gradients is 'float16'; use float32 or bfloat16"),
        ({"replicas": 0}, "replicas is 0; it must be at least 1"),
        ({"prefetch": -1}, "prefetch is -1; it must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        FSDP2(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"replicas": 3}, "replicas is 3, which does not divide the 8 devices"),
        ({"reshard_after_forward": 3}, "a number must divide the 8 devices that share a copy"),
        ({"reshard_after_forward": 4, "replicas": 2}, "a number must divide the 4 devices that share a copy"),
    ],
)
def test_devices_that_cannot_be_divided_as_asked_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        FSDP2(**settings).refuse_devices(8)
    FSDP2(replicas=2, reshard_after_forward=2).refuse_devices(8)


@pytest.mark.parametrize(
    ("settings", "precision", "dtype", "travels"),
    [
        ({}, BF16, torch.float32, (torch.bfloat16, None)),
        ({"gradients": "float32"}, BF16, torch.float32, (torch.bfloat16, torch.float32)),
        ({"parameters": "float32"}, BF16, torch.float32, (None, None)),
        ({}, Precision(), torch.float32, (None, None)),
        ({"parameters": "bfloat16"}, Precision(), torch.float32, (torch.bfloat16, None)),
        ({}, BF16, torch.float64, (None, None)),
        ({"parameters": "bfloat16"}, BF16, torch.bfloat16, (None, None)),
        ({"gradients": "float32"}, BF16, torch.bfloat16, (None, torch.float32)),
        ({"gradients": "float32"}, HalfPrecision("bf16-true"), torch.float32, (None, torch.float32)),
        ({"parameters": "bfloat16"}, HalfPrecision("bf16-true"), torch.float32, (None, None)),
    ],
)
def test_weights_travel_in_bf16_if_they_are_fp32_and_computed_with_in_bf16(settings, precision, dtype, travels):
    strategy = strategy_with(precision, **settings)
    policy = strategy.policy(nn.Linear(2, 2, dtype=dtype))
    assert (policy.param_dtype, policy.reduce_dtype) == travels


@pytest.mark.parametrize(
    ("precision", "dtypes", "kept"),
    [
        (BF16, [torch.bfloat16], "bfloat16"),
        (HalfPrecision("bf16-true"), [torch.float32], "bfloat16"),
        (Precision(), [torch.bfloat16, torch.float32], "bfloat16 and float32"),  # an adapter beside a base model
    ],
)
def test_weights_that_cannot_be_gathered_as_asked_are_refused(precision: Precision, dtypes: list[Any], kept: str):
    model = nn.Sequential(*(nn.Linear(2, 2, dtype=dtype) for dtype in dtypes))
    strategy = strategy_with(precision, parameters="float32", gradients="float32")
    with pytest.raises(UsageError, match=f"parameters is float32, and the weights are kept in {kept} .*: leave param"):
        strategy.policy(model)
    assert strategy.policy(model.requires_grad_(False)).param_dtype is None, "a reference keeps its own"


def test_the_first_lines_say_what_travels_and_every_other_setting():
    strategy = strategy_with(BF16, replicas=2, gradients="float32", reshard_after_forward=2, prefetch=3)
    assert strategy.in_words("float32", 8) == (
        "2 copies of the model, each over 4 devices; weights are gathered in bfloat16, gradients summed over devices "
        "in float32, weights and optimizer state kept in float32; reshard_after_forward 2 and prefetch 3, "
        "save_distributed_checkpoint true"
    )
    assert "gathered in bfloat16, gradients summed over devices in bfloat16" in strategy_with(BF16).in_words(
        "bfloat16", 8
    )
    rounded = strategy_with(HalfPrecision("bf16-true"), gradients="float32").in_words("float32", 8)
    assert rounded.startswith(
        "the model over 8 devices; weights are gathered in bfloat16, gradients summed over devices in float32"
    )
    alone = strategy_with(BF16, reshard_after_forward=False, save_distributed_checkpoint=False).in_words("float32", 1)
    assert alone.startswith("the model over 1 device; ") and alone.endswith(
        "reshard_after_forward false and prefetch 0 (without effect, because a copy is whole on its device), "
        "save_distributed_checkpoint false"
    )


def dtypes_within(modules: dict[str, nn.Module], scorer: nn.Module, *arguments: Any) -> dict[str, torch.dtype]:
    """Shard, score, and return the dtype of each module's weight as its forward pass finds it."""
    found: dict[str, torch.dtype] = {}
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda own, args, name=name: found.update({name: own.weight.dtype}))
    shard(scorer, placed(FSDP2(prefetch=1)))
    assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in scorer.parameters())
    with BF16.forward_context():
        scores = scorer(*arguments)
    scores.chosen.scores.sum().backward()
    assert {p.grad.dtype for p in scorer.parameters() if p.grad is not None} == {torch.float32}
    return found


@pytest.mark.usefixtures("alone")
def test_a_value_head_is_not_rounded_beside_a_policy_in_bf16(policy_folder: Path):
    scorer, need = Scorer(ModelSpec(path=str(policy_folder)).build()), PromptValue(0.1)
    enable_prefix_sharing(scorer.model)
    scorer.value = ValueHead(32, torch.float32, 0.1)
    inside = {"value": scorer.value, "block": scorer.model.model.layers[1].mlp.up_proj, "norm": scorer.model.model.norm}
    found = dtypes_within(inside, scorer, collate(PAIRS, 0, layout="prefix_shared"), frozenset({need}))
    assert found == {"value": torch.float32, "block": torch.bfloat16, "norm": torch.bfloat16}


@pytest.mark.usefixtures("alone")
def test_the_head_of_a_reward_model_is_not_rounded(policy_folder: Path):
    spec = ModelSpec(path=str(policy_folder), head="scalar")
    scorer = reward_scorer(spec.build(), spec.embedding)
    inside = {"block": scorer.model.model.layers[0].mlp.up_proj, "norm": scorer.model.model.norm}
    found = dtypes_within(inside, scorer, collate(PAIRS, 0, layout="padded"))
    assert found == {"block": torch.bfloat16, "norm": torch.float32}  # the norm is gathered with the head


@pytest.mark.usefixtures("alone")
def test_a_reference_frees_its_weights_after_a_forward_pass_and_its_readout_can_still_be_read(policy_folder: Path):
    batch, need = collate(PAIRS, 0, layout="padded"), frozenset({Kl()})
    policy, reference = (Scorer(ModelSpec(path=str(policy_folder)).build()) for _ in range(2))
    reference.eval().requires_grad_(False).model.lm_head.weight.mul_(1.1)
    with torch.no_grad():
        expected = policy(batch, need, reference.readout(batch))
    for scorer in (policy, reference):
        shard(scorer, placed(FSDP2(parameters="float32")))
    with torch.no_grad():
        against = reference.readout(batch)
        assert all(isinstance(p, DTensor) for p in reference.parameters()), "some weights are still gathered"
        first = score_readout(against, batch)
        assert torch.equal(first.chosen.scores, reference(batch).chosen.scores)
        found = policy(batch, need, against)
    assert torch.equal(found.chosen.scores, expected.chosen.scores)
    assert torch.equal(found.chosen.statistics[Kl()], expected.chosen.statistics[Kl()])
    assert not isinstance(policy.model.lm_head.weight, DTensor), "the backward pass of a trained model begins with them"


@pytest.fixture
def lone_run() -> Iterator[None]:
    """Whatever a run that shards over this process alone leaves behind is removed."""
    before = dict(os.environ)
    yield
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["initial", "pretrained"])
@pytest.mark.usefixtures("lone_run")
def test_a_live_reference_that_is_the_policy_begins_at_a_loss_of_ln_2_in_bf16(
    tmp_path: Path, policy_folder: Path, pairs_file: Path, kind: str
):
    made = Pretrained(str(policy_folder)) if kind == "pretrained" else InitialPolicy()
    run = Run(
        policy={"path": str(policy_folder)},
        data={"train": str(pairs_file), "val_fraction": 0.0, "global_batch": 8, "micro_batch": 4},
        references=lambda: [made],
        reference_store=False,
        trainer={"precision": "bf16-mixed", "max_steps": 1},
    )
    ran = fit(run, tmp_path, strategy=FSDP2(save_distributed_checkpoint=False))
    (first,) = ran.logged.column("train/loss")
    assert first == pytest.approx(math.log(2), abs=1e-6) and ran.logged.column("train/rewards/margins") == [0]
    assert made.scorer is not None
    assert all(isinstance(p, DTensor) for p in made.scorer.parameters())


def strategy_of(*arguments: str) -> Any:
    config = resolve(["--config", str(ROOT / "configs" / "fsdp.yaml"), "--data.train", "pairs.jsonl", *arguments])
    return run_parser(module=module_of(config)).instantiate(config).trainer.strategy


def test_the_shipped_configuration_has_these_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    strategy = strategy_of("--model.policy.path", "policy", "--trainer.strategy.replicas", "2")
    assert isinstance(strategy, FSDP2) and strategy.describe() == "FSDP2(replicas=2, prefetch=1)"


@pytest.mark.parametrize("name", ["fsdp2", "FSDP2"])
def test_either_spelling_of_fsdp2_takes_settings_and_keeps_those_of_a_file(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    chosen = ["--model.policy.path", "policy", "--trainer.strategy", name]
    assert strategy_of(*chosen, "--trainer.strategy.replicas", "2").describe() == "FSDP2(replicas=2, prefetch=1)"
    assert strategy_of(*chosen[:2], f"--trainer.strategy={name}").describe() == "FSDP2(prefetch=1)"
    assert strategy_of(*chosen[:2], "--trainer.strategy", "ddp") == "ddp"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--trainer.strategy.replicas", "2"], "replicas is 2, which does not divide the 1 device of this run: set"),
        (["--trainer.precision", "bf16-true", "--trainer.strategy.parameters", "float32"], "are kept in bfloat16 "),
        (["--model.policy.dtype", "bfloat16", "--trainer.strategy.parameters", "float32"], "are kept in bfloat16 "),
        (
            ["--model.policy.lora.r=4", "--model.policy.dtype=bfloat16", "--trainer.strategy.parameters=bfloat16"],
            "parameters is bfloat16, and the weights are kept in bfloat16 and float32 ",
        ),
    ],
)
def test_settings_that_do_not_suit_the_run_are_refused_when_it_is_built(
    tmp_path: Path, policy_folder: Path, settings: list[str], words: str
):
    given = {"model.policy.path": str(policy_folder), "data.train": "no.jsonl", "trainer.accelerator": "cpu"}
    given |= {"trainer.strategy": "fsdp2", "run_dir": str(tmp_path / "run")}
    words_of_run = [f"--{name}={value}" for name, value in {**given, "trainer.devices": 1}.items()]
    with pytest.raises(UsageError, match=words):
        assemble(resolve([f"--config={ROOT / 'configs' / 'dpo.yaml'}", *words_of_run, *settings]), "fit", [])


def test_dtypes_of_trained_weights_are_known_from_the_spec(policy_folder: Path):
    for settings in ({"lora": Lora(r=2)}, {"head": "scalar"}, {}):
        for dtype in ("float32", "bfloat16", "float64"):
            spec = ModelSpec(path=str(policy_folder), dtype=dtype, **settings)
            built = {str(p.dtype).removeprefix("torch.") for p in spec.build().parameters()}
            assert built == trained_dtypes(spec), (settings, dtype)


def test_fsdp2_is_a_strategy_by_name_and_fsdp1_is_refused():
    refuse_fsdp1("fsdp2")
    trainer = Trainer(strategy="fsdp2", accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    assert isinstance(trainer.strategy, FSDP2)
    with pytest.raises(UsageError, match=r"use FSDP2, `trainer\.strategy: fsdp2`"):
        refuse_fsdp1("fsdp")
    with pytest.raises(UsageError, match="FSDP1"):
        refuse_fsdp1(FSDPStrategy)


# Launches on several nodes, through the command line


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launches(launch: str) -> list[tuple[list[str], dict[str, str]]]:
    """The command before the arguments of `fit`, and the environment, of each node."""
    port, torchrun, program = free_port(), [sys.executable, "-m", "torch.distributed.run"], ["-m", "lit_pref"]
    if launch == "one node":
        return [([*torchrun, "--nproc_per_node", "4", "--master_port", port, *program], {})]
    if launch == "torchrun":
        meeting = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port]
        return [([*torchrun, *meeting, "--node_rank", str(k), *program], {}) for k in range(2)]
    job = {"JOB_ID": "7", "JOB_NAME": "job", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "LOCALID": "0"}
    nodes = [{**job, "NODELIST": "127.0.0.1", "PROCID": str(k), "NODEID": str(k)} for k in range(2)]
    environments = [{f"SLURM_{name}": value for name, value in node.items()} for node in nodes]
    return [([sys.executable, *program], {**environment, "MASTER_PORT": port}) for environment in environments]


def fitted(folder: Path, policy: Path, launch: str | None, *options: str) -> tuple[dict[str, torch.Tensor], str]:
    """Train through the command line; return the exported weights and what the first node printed."""
    folder.mkdir()
    write_pairs(folder / "pairs.jsonl", 24)
    line = ["fit", "--config", str(ROOT / "configs" / "dpo.yaml"), "--trainer.accelerator", "cpu", "--run_dir", "run"]
    line += ["--model.policy.path", str(policy), "--data.train", "pairs.jsonl", "--data.global_batch", "8"]
    line += ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--model.policy.dtype", "float64"]
    line += ["--trainer.max_epochs", "2", "--trainer.gradient_clip_val", "0.5", *options]
    nodes = launches(launch) if launch else [([sys.executable, "-m", "lit_pref"], {})]
    logs = [(folder / f"{k}.log").open("w+") for k in range(len(nodes))]
    started = [
        subprocess.Popen([*command, *line], cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=log)
        for (command, environment), log in zip(nodes, logs, strict=True)
    ]
    try:
        codes = [node.wait(timeout=300) for node in started]
    finally:
        for node in started:
            node.kill()
    said = [(folder / f"{k}.log").read_text() for k in range(len(nodes))]
    assert codes == [0] * len(nodes), "\n".join(text[-3000:] for text in said)
    return load_file(next((folder / "run").glob("hf/*.safetensors"))), said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "options", "sharding"),
    [
        (
            "one node",
            ("--trainer.devices", "4", "--trainer.strategy.replicas", "2"),
            "2 copies of the model, each over 2 device",
        ),
        ("torchrun", ("--trainer.devices", "1", "--trainer.num_nodes", "2"), "the model over 2 device"),
        ("srun", ("--trainer.devices", "1", "--trainer.num_nodes", "2"), "the model over 2 device"),
    ],
)
def test_several_processes_and_nodes_train_what_one_process_does(tmp_path, policy_folder, launch, options, sharding):
    expected, _ = fitted(tmp_path / "one", policy_folder, None)
    found, said = fitted(tmp_path / "many", policy_folder, launch, "--trainer.strategy", "FSDP2", *options)
    assert found.keys() == expected.keys()
    start = load_file(policy_folder / "model.safetensors")
    moved = max((expected[name] - value).abs().max() for name, value in start.items())
    assert moved > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)
    lines = [line for line in said.splitlines() if line.startswith("sharding")]
    assert len(lines) == 1 and sharding in lines[0]
