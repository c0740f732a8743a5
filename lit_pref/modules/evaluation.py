"""Validation, test and prediction: records of pairs are gathered and written, and metrics computed and plotted."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_pref.batch import PairData
from lit_pref.metrics.calibration import calibrate, reliability_diagram
from lit_pref.metrics.pair_metrics import margin_quantiles, split_by_group, split_by_margin, summarise
from lit_pref.metrics.records import PairRecords, Records, merge, read_parquet, write_parquet
from lit_pref.modules.distributed import gather_objects
from lit_pref.modules.nonfinite import refuse_nonfinite
from lit_pref.scores import ObjectiveOutput, PairScores


class Evaluation:
    """One pass over held-out pairs: one record per pair, unique over ranks, from which all metrics are computed.

    Args:
        margin_bins: Metrics are split into this many equal-count bins of the margin; 0 is off.
    """

    def __init__(self, margin_bins: int = 0) -> None:
        self.margin_bins = margin_bins
        self.before: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.records: Records = {}  # of the last pass, merged
        self.records_before: Records = {}  # of the pass before training
        self._records = PairRecords()

    def begin(self, columns: Sequence[str]) -> None:
        """Start a new pass; its records include these numeric columns of the data.

        A column `p_true` contains known probabilities, against which calibration is measured as well.
        """
        self._records = PairRecords(columns)

    def add(
        self, pairs: PairData, policy: PairScores, references: Sequence[PairScores], output: ObjectiveOutput
    ) -> None:
        """Add the records of one batch."""
        self._records.add(pairs, policy, references, output)

    def finish(self, trainer: Trainer, weights_step: int) -> dict[str, float]:
        """Merge the records of all ranks, write them to the run folder, and log their metrics.

        Args:
            trainer: the run's Trainer.
            weights_step: the optimizer step of the evaluated weights, for runs that do not train.

        Returns:
            The metrics for callbacks that watch one, such as early stopping; none in the pass before training, and in
            a prediction.
        """
        records = merge(gather_objects(trainer, self._records.collect()))
        assert trainer.state.fn is not None and trainer.state.stage is not None
        stage = trainer.state.stage.dataloader_prefix or ""  # val, test or predict
        fitting = trainer.state.fn == "fit"
        step = trainer.global_step if fitting else weights_step
        if fitting and trainer.sanity_checking and step > 0:
            return {}  # the pass before a resumed run is not the one before training
        held_out = trainer.datamodule.val_pairs  # type: ignore[attr-defined]
        place_of = dict(zip(held_out.ids, held_out.column("place"), strict=True))
        places = records["place"] = [place_of[name] for name in records["id"]]
        if trainer.is_global_zero and not (fitting and trainer.fast_dev_run):  # type: ignore[attr-defined]
            # The file is named after the command, so that `validate` does not overwrite the records of `fit`.
            name = stage if fitting else trainer.state.fn.value
            write_parquet(records, record_file(trainer.default_root_dir, name, step))
        if bad := [place for place, loss in zip(places, records["loss"], strict=True) if not math.isfinite(loss)]:
            refuse_nonfinite(trainer, bad, trainer.global_step)
        self.last, self.records = self.measure(records, stage), records
        if trainer.sanity_checking:
            self.before, self.records_before = self.last, records
        if stage != "predict":
            # Metrics are logged directly, because Lightning does not log the pass before training, which is the
            # baseline of every curve, and logs every later pass one step too early.
            for logger in trainer.loggers:
                logger.log_metrics(self.last, step=step)
        if trainer.is_global_zero:
            self._draw(records, trainer.loggers, stage, step)
        return {} if trainer.sanity_checking or stage == "predict" else self.last

    def measure(self, records: Records, stage: str) -> dict[str, float]:
        """Return every metric of the records, with calibration and the requested splits."""
        numbers = summarise(records, stage)
        numbers |= calibrate(records, against=self._targets(records), prefix=stage)
        parts = {f"{stage}/group/{name}": part for name, part in split_by_group(records).items() if "group" in records}
        if self.margin_bins:
            edges = margin_quantiles(records, self.margin_bins)
            parts |= {f"{stage}/margin/{name}": part for name, part in split_by_margin(records, edges).items()}
        for prefix, part in parts.items():
            numbers |= summarise(part, prefix)
        return numbers

    def recall(self, folder: str | Path) -> None:
        """Read the metrics before training, for a run that is resumed."""
        file = record_file(folder, "val", 0)
        if file.exists():
            self.records_before = read_parquet(file)
            self.before = self.measure(self.records_before, "val")

    @staticmethod
    def _targets(records: Records) -> list[str]:
        # Hard targets equal the labels.
        soft = "target" in records and any(target != 1 for target in records["target"])
        return [name for name in ("p_true", "probability") if name in records] + (["target"] if soft else [])

    def _draw(self, records: Records, loggers: Sequence[object], stage: str, step: int) -> None:
        if "z" not in records or not any(isinstance(logger, TensorBoardLogger) for logger in loggers):
            return
        for target in [None, *self._targets(records)]:
            labels = [1.0] * len(records["z"]) if target is None else records[target]
            rows = [row for row in zip(records["z"], labels, strict=True) if None not in row]
            if not rows or not torch.tensor(rows).isfinite().all():
                continue
            z, label = torch.tensor(rows, dtype=torch.float64).T
            figure = reliability_diagram(z, label, title=f"{stage}, step {step}, against {target or 'the label'}")
            for logger in loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"{stage}/reliability/{target or 'label'}", figure, step)


def record_file(folder: str | Path, name: str, step: int) -> Path:
    """The path of the records of an evaluation at an optimizer step, in a run folder."""
    return Path(folder) / "records" / f"{name}-step={step:08d}.parquet"
