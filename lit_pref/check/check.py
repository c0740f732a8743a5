"""The checks of one run, from its configuration to the printed report."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lit_pref.check.data_findings import BadRowLimits, overlap, source_findings, split_findings
from lit_pref.check.devices import Devices, strategy_of
from lit_pref.check.html import page
from lit_pref.check.model_findings import model_findings
from lit_pref.check.rendering import examples, render
from lit_pref.check.report import Arrays, Finding, Report
from lit_pref.check.strength_findings import Strength, strength_of, target_findings
from lit_pref.check.terminal import print_report
from lit_pref.check.text_findings import dated
from lit_pref.errors import UserError, printable
from lit_pref.models.experts import router_line, router_weight
from lit_pref.modules.base import PairModule
from lit_pref.modules.fitting import fit_objective
from lit_pref.modules.step_lines import steps_of
from lit_pref.printing import say


@dataclass
class Check:
    """Check a run instead of training it.

    `loosen` changes the configuration before anything is built, and `check_devices` looks at what was built. Then
    either `run` takes the module, or `refused` takes the error with which the run would stop. `finish` prints and
    writes the report.

    Args:
        title: the heading of the report: the command and its configuration files.
        html: the file for the page; None writes none.
        json: the file for the report as JSON; None writes none.
        model: build the models and check them too.
    """

    title: str
    html: Path | None = None
    json: Path | None = None
    model: bool = False
    report: Report = field(init=False)
    _limits: BadRowLimits = field(init=False, default=BadRowLimits(True, 0.0))
    _skipped_selection: str | None = field(init=False, default=None)  # it needs a model, but `model` is off
    _devices: Devices = field(init=False, default=Devices())
    _strength: Strength | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.report = Report(self.title)

    def loosen(self, config: Any) -> None:
        """Change a run's configuration to use one process and to count faulty records instead of stopping."""
        refuses = config.data.lost_text == "refuse"
        self._limits = BadRowLimits(config.data.bad_rows == "strict", config.data.max_refused, refuses)
        config.data.bad_rows, config.data.max_refused, config.data.lost_text = "lenient", 1.0, "accept"
        if config.data.selection is not None and not self.model and _needs_model(config.data.selection):
            self._skipped_selection = config.data.selection.class_path.rpartition(".")[2]
            config.data.selection = None
        try:
            strategy = strategy_of(config.trainer.strategy)
        except UserError as error:
            strategy = None
            self._add_refusal(error)
        self._devices = Devices(config.trainer.devices, config.trainer.num_nodes, strategy)
        config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy = 1, 1, "auto"

    def check_devices(self, trainer: Trainer, module: PairModule) -> None:
        """Report settings of the devices with which the run would stop before it reads its data.

        Args:
            trainer: the Trainer of this check, which has one device.
            module: the run's module.
        """
        try:
            self._devices.refuse(trainer, module.spec)
        except UserError as error:
            self._add_refusal(error)

    def run(self, module: PairModule) -> None:
        """Check the data of a run, and its models if `model` is set.

        Args:
            module: a module that is attached to its Trainer, with prepared data.
        """
        refused = bool(self.report.about("refused"))
        self._check_data(module)
        self.report.findings += [Finding("steps", "warning", line) for line in steps_of(module).warnings()]
        if self.model and refused:
            words = "the models were not checked, because the run would stop before it builds them"
            self.report.findings.append(Finding("models", "note", words))
        elif self.model:
            try:
                self.report.findings += model_findings(module, self._devices)
            except UserError as error:
                self._add_refusal(error)

    def refused(self, module: PairModule, error: UserError) -> None:
        """Report an error with which the run would stop, and check the data if they can be read."""
        self._add_refusal(error)
        data = module.data
        try:
            if not data.is_open:  # data without a column that the objective needs can still be checked
                data.open_for_any_objective()
        except UserError:
            return
        self._check_data(module)

    def finish(self) -> None:
        """Print the report and write the requested files.

        Raises:
            UserError: a finding has the severity `stop`, or a file cannot be written.
        """
        report = self.report
        print_report(report)
        files = []
        if self.html is None:
            files.append("--html FILE writes a page with figures")
        else:
            _write(self.html, page(report, self._strength))
            files.append(f"page: {self.html}")
        if self.json is None:
            files.append("--json FILE writes the report as JSON")
        else:
            _write(self.json, json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")
            files.append(f"JSON: {self.json}")
        files += [] if self.model else ["--model checks the models too"]
        say("\n" + "; ".join(files))
        if stops := report.of("stop"):
            topics = ", ".join(dict.fromkeys(f"{f.split} {f.topic}".strip() for f in stops))
            raise UserError(f"check: {len(stops)} finding(s) stop this run ({topics}); fix those marked stop above")

    def _add_refusal(self, error: UserError) -> None:
        self.report.findings.append(Finding("refused", "stop", f"the run would stop with this error: {error}"))

    def _check_data(self, module: PairModule) -> None:
        data = module.data
        splits = {"train": data.train_pairs, "val": data.val_pairs}
        tokenizer = module.spec.load_tokenizer()
        added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids} - {tokenizer.bos_token_id}
        added.add(tokenizer.eos_token_id)
        ends = {number: str(tokenizer.convert_ids_to_tokens(number)) for number in sorted(added)}
        self.report.findings += [self._reading(), *self._selection(module), *_router(module)]
        try:
            fitted = fit_objective(module.objective, data.train_pairs)
            self.report.findings += [Finding("fitted", "ok", line) for line in fitted]
            self._strength = strength_of(module.objective)
        except UserError as error:
            self._add_refusal(error)
        found = dated(tokenizer.chat_template) + source_findings(
            splits, self._limits, tokenizer.chat_template is not None
        )
        for split, pairs in splits.items():
            found += split_findings(split, pairs, tokenizer.bos_token_id, ends)
            if len(pairs):
                self.report.arrays[split] = Arrays(pairs.column("margin").astype(float), pairs.lengths)
        found += target_findings("train", splits["train"], self._strength) + overlap(*splits.values())
        self.report.findings += found
        self.report.rendered = [render(pair, tokenizer, added) for pair in examples(splits["train"])]

    def _reading(self) -> Finding:
        """The finding on how `check` and the run treat faulty records."""
        configured = f"{'strict' if self._limits.strict else 'lenient'} and {self._limits.max_refused:g}"
        words = "check reads with data.bad_rows lenient and data.max_refused 1, to find all faulty records at once"
        return Finding("read", "ok", f"{words}; the run itself uses {configured}")

    def _selection(self, module: PairModule) -> Iterator[Finding]:
        """The finding on whether the numbers are those before or after data.selection."""
        data = module.data
        numbers = {"pairs": len(data.train_pairs), "of": len(data.unselected)}
        if module.selected is not None:
            words = f"train: all numbers are of the selected pairs: {module.selected}"
            yield Finding("selection", "ok", words, "train", numbers=numbers)
        elif name := self._skipped_selection or (data.selection and type(data.selection).__name__):
            words = f"train: all numbers are of the {numbers['of']} pairs before {name} selects some"
            words += ", which needs the models; --model runs it" if self._skipped_selection else ""
            yield Finding("selection", "warning", words, "train", numbers=numbers)


def _router(module: PairModule) -> Iterator[Finding]:
    """The finding that the router loss of a mixture of experts is on or off."""
    config, asked = module.spec.configuration(), module.spec.router_loss
    if line := router_line(config, asked):
        yield Finding("router", "ok" if router_weight(config, asked) else "warning", line)


def _write(path: Path, content: str) -> None:
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(printable(content), encoding="utf-8")
    except OSError as error:
        if is_new:  # an unfinished page would look like a finished one
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}; name another file") from error


def _needs_model(selection: Any) -> bool:
    """Whether a selection needs scores of a model, according to its configuration."""
    module, _, name = selection.class_path.rpartition(".")
    reference = (selection.get("init_args") or {}).get("reference")
    return bool(getattr(import_module(module), name).reads_policy or reference)
