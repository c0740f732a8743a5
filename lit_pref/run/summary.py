"""The summary at the end of a run."""

import math
import os
import shlex
import sys
from io import StringIO
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from rich.console import Console
from rich.table import Table
from torch.nn.functional import softplus

from lit_pref.metrics.calibration import reliability_bins
from lit_pref.metrics.intervals import prompt_intervals
from lit_pref.metrics.pair_metrics import per_pair
from lit_pref.metrics.records import Records
from lit_pref.modules.base import PairModule
from lit_pref.modules.evaluation import Evaluation
from lit_pref.option_split import without_options
from lit_pref.run.export import Exported

HELD_OUT = {
    "loss minus the target's entropy (nats)": "val/kl_to_target",
    "preference accuracy": "val/rewards/accuracies",
    "accuracy within lists": "val/lists/accuracies",
    "Kendall's tau within lists": "val/lists/kendall_tau",
    "best response ranked first": "val/lists/best_first",
    "accuracy under the first reference": "val/rewards/accuracies@reference0",
    "reward margin": "val/rewards/margins",
    "log-loss against the labels (nats)": "val/calibration/log_loss",
    "Brier score against the labels": "val/calibration/brier",
    "calibration error against the labels": "val/calibration/ece",
    "calibration error against the true probability": "val/calibration@p_true/ece",
    "calibration error against the target": "val/calibration@target/ece",
    "chosen response less likely than under the reference": "val/chosen_fell",
}


def summary(
    module: PairModule, run_dir: Path, config: Path, checkpoint: Path, exported: Exported, arguments: list[str]
) -> str:
    """Summarise the held-out metrics before and after, the paths of the results, and a command to run next.

    Args:
        module: the module after training.
        run_dir: the run folder.
        config: the configuration of this run, or of the part of it since it was resumed.
        checkpoint: the last one.
        exported: the export of that checkpoint.
        arguments: the run's command line.
    """
    parts = [held_out_table(module.evaluation.before, module.evaluation)] if module.evaluation.last else []
    kept = run_dir / "records"
    records = [f"records      {kept}  (one row per held-out pair)"] if kept.exists() else []
    parts.append(
        "\n".join(
            [
                f"checkpoint   {checkpoint}",
                f"HF folder    {exported.folder}  ({exported.judgement})",
                *([f"ends at      {', '.join(exported.stops)}"] if exported.stops else []),
                f"config       {config}  ({_repeats(config)})",
                *records,
                f"TensorBoard  tensorboard --logdir {_logdir(run_dir)}",
            ]
        )
    )
    parts.append(next_steps(module, run_dir, arguments))
    return "\n\n".join(parts)


def _repeats(config: Path) -> str:
    if config.name == "config.yaml":
        return "repeats the run"
    return f"of the part since the run was resumed; it began with {config.with_name('config.yaml')}"


def _logdir(run_dir: Path) -> Path:
    """The folder of all runs, which TensorBoard compares by their names; the run's own if it lies in no such folder."""
    return run_dir.parent if run_dir.parent.name else run_dir


def next_steps(module: PairModule, run_dir: Path, arguments: list[str]) -> str:
    """A command to run next: the same run with another objective that works with these references and data."""
    method = type(module.objective).__name__
    if module.objective.requirements.sides == ("chosen",) and not module.objective.requirements.lists:
        return f"Next: preferences, from this policy on\n  --model.policy.path {run_dir / 'hf'}"
    has_margins = module.data.train_pairs[0].margin is not None
    if module.objective.requirements.lists:
        change = ["--model.objective", "ListNet" if method != "ListNet" else "RankNet"]
    elif module.spec.outputs is not None:
        change = ["--model.objective", "BradleyTerry"]
        if method == "BradleyTerry":
            change = ["--model.objective", "MMPO", "--model.objective.beta", "1"]
            change += ["--model.objective.reference", "NoReference"]
    elif len(module.references) > 1:
        change = ["--model.objective", "MRPO" if method != "MRPO" else "DPO"]
        change += [] if method != "MRPO" else ["--model.objective.reference", "Geometric"]
    else:
        change = ["--model.objective", "DPO" if method != "DPO" else "MMPO" if has_margins else "EpsilonDPO"]
    again = without_options(arguments, ["--run_dir", "--ckpt_path", "--model.objective"])
    launch, where = launcher(module.trainer)
    command = [*launch, "-m", "lit_pref", *again, *change, "--run_dir", f"{run_dir}-{change[1].lower()}"]
    told = f"Next{where}: the same with another objective (none of this one's arguments are kept)"
    return f"{told}\n  {shlex.join(command)}"


def launcher(trainer: Trainer) -> tuple[list[str], str]:
    """Return the words that start the processes of a run like this one, and where they are typed, if that matters.

    Args:
        trainer: the Trainer of this run.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    nodes, devices = trainer.num_nodes, trainer.num_devices
    if isinstance(environment, TorchElasticEnvironment):
        if nodes == 1:
            return ["torchrun", "--nproc_per_node", str(devices)], ""
        meeting = ["--master_addr", environment.main_address, "--master_port", str(environment.main_port)]
        words = ["torchrun", "--nnodes", str(nodes), "--node_rank", "K", "--nproc_per_node", str(devices), *meeting]
        return words, f", on each node K of 0 to {nodes - 1}"
    if isinstance(environment, SLURMEnvironment):
        return ["srun", _this_python()], f", in a job of {nodes} node(s) with {devices} task(s) each"
    if environment is None or (isinstance(environment, LightningEnvironment) and nodes == 1):
        return [_this_python()], ""  # the first process starts the others
    return [_this_python()], f", on {nodes} node(s), launched as this run was"


def _this_python() -> str:
    """The running interpreter, as a user would type it here."""
    here = os.path.relpath(sys.executable)
    return sys.executable if here.startswith("..") else here


def held_out_table(before: dict[str, float], evaluation: Evaluation) -> str:
    """Held-out metrics before and after training, with intervals over prompts, as text.

    Args:
        before: the metrics before training; empty if there are none.
        evaluation: after the last pass.
    """
    # Of `test`, the names begin with test/.
    after = {f"val/{key.partition('/')[2]}": number for key, number in evaluation.last.items()}
    labels = HELD_OUT if "val/kl_to_target" in after else {"loss (nats)": "val/loss", **HELD_OUT}
    columns = [(before, _intervals(evaluation.records_before))] if before else []
    columns.append((after, _intervals(evaluation.records)))
    table = Table(title="Held-out pairs")
    table.title_justify = "left"
    table.add_column("")
    for name in ("before", "after") if before else ("value",):
        table.add_column(name, justify="right")
        table.add_column("95 % over prompts", justify="right")
    for label, key in labels.items():
        if not math.isnan(after.get(key, math.nan)):
            cells = [(f"{of[key]:.3f}", intervals.get(key, "")) if key in of else ("", "") for of, intervals in columns]
            table.add_row(label, *(cell for pair in cells for cell in pair))
    return f"{as_text(table)}\n{COVERS}" + (OF_CALIBRATION if "val/calibration/ece" in after else "")


COVERS = (
    "The intervals cover other prompts of the same kind (pairs of one prompt count together), not other training seeds."
)
OF_CALIBRATION = (
    "\nThe calibration error of a calibrated model on so few pairs is not 0. A policy that is its own reference gives\n"
    "every pair probability 1/2: its calibration error is 0 although it knows nothing; compare log-losses."
)


def _intervals(records: Records) -> dict[str, str]:
    """The cells beside the numbers: intervals, and the calibration error that a calibrated model would have."""
    if not records:
        return {}
    values = {f"val/{name}": value for name, value in per_pair(records).items()}
    z = torch.tensor([value for value in records.get("z", []) if value is not None], dtype=torch.float64)
    if not bool(z.isfinite().all()):
        return {}
    if known := 0 < len(z) == len(records["z"]):
        values |= {"val/calibration/log_loss": softplus(-z), "val/calibration/brier": (z.sigmoid() - 1).square()}
    # The loss of lists is a mean over lists, and these values are of responses.
    loss = ("val/loss",) if "list" not in records else ()
    shown = {key: values[key] for key in (*HELD_OUT.values(), *loss) if key in values}
    cells = {key: f"{low:.3f} to {high:.3f}" for key, (low, high) in prompt_intervals(records, shown).items()}
    if known:
        floor = reliability_bins(z).error_if_calibrated
        cells["val/calibration/ece"] = "too few pairs" if math.isnan(floor) else f"{floor:.3f} if calibrated"
    return cells


def as_text(table: Table, width: int = 120) -> str:
    """Format a table as plain text, which looks the same on a terminal and in a log."""
    out = StringIO()
    Console(file=out, width=width, force_terminal=False).print(table)
    return out.getvalue().rstrip()
