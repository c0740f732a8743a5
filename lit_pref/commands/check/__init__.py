"""`python -m lit_pref check`: everything that can be known of a run before it is run."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pref.commands.check.findings import Arrays, Finding, Report
from lit_pref.errors import UserError

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule


@dataclass
class Check:
    """What `check` was asked for, and what it finds; it stands where a run would train.

    Args:
        title: what is checked, in a word.
        html: where the page goes; None for none.
        json: where the report for machines goes; None for none.
        model: build and compare the models too.
    """

    title: str
    html: Path | None = None
    json: Path | None = None
    model: bool = False
    report: Report = field(init=False)
    _strict: bool = field(init=False, default=True)
    _max_refused: float = field(init=False, default=0.0)
    _not_chosen: str | None = field(init=False, default=None)  # the selection that would need a model, and has none
    _devices: Any = field(init=False, default=None)
    _strength: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.report = Report(self.title)

    def loosen(self, config: Any) -> None:
        """Change a run's configuration, before anything is built: one process, and all faults in one go."""
        self._strict, self._max_refused = config.data.bad_rows == "strict", config.data.max_refused
        config.data.bad_rows, config.data.max_refused = "lenient", 1.0
        if config.data.selection is not None and not self.model and _reads_a_model(config.data.selection):
            self._not_chosen = config.data.selection.class_path.rpartition(".")[2]
            config.data.selection = None
        self._devices = config.trainer.devices, config.trainer.num_nodes
        config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy = 1, 1, "auto"

    def __call__(self, module: "PreferenceModule") -> None:
        """Look at the data of a run, and at its models where that was asked for."""
        self._look_at_data(module)
        if self.model:
            from lit_pref.commands.check.memory import Devices
            from lit_pref.commands.check.probes import model_findings

            try:
                self.report.findings += model_findings(module, Devices(*self._devices))
            except UserError as error:
                self._refuse(error)

    def refused(self, module: "PreferenceModule", error: UserError) -> None:
        """A run would not begin: say so beside what is known of its data."""
        self._refuse(error)
        data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
        try:
            if not data.is_open:  # what the objective lacks keeps nobody from looking at what there is
                data.open_for_any_objective()
        except UserError:
            return
        self._look_at_data(module)

    def finish(self) -> None:
        """Print the report and write what was asked for.

        Raises:
            UserError: something was found that is wrong enough to stop, or a file cannot be written.
        """
        from lit_pref.commands.check.text import text

        report = self.report
        text(report)
        said = []
        if self.html is None:
            said.append("--html FILE writes a page with figures")
        else:
            from lit_pref.commands.check.page import page

            self._write(self.html, page(report, self._strength))
            said.append(f"page: {self.html}")
        if self.json is None:
            said.append("--json FILE writes all of this for machines")
        else:
            self._write(self.json, json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")
            said.append(f"for machines: {self.json}")
        said += [] if self.model else ["--model looks at the models too"]
        print("\n" + "; ".join(said), flush=True)
        if stops := report.of("stop"):
            topics = ", ".join(dict.fromkeys(f"{f.split} {f.topic}".strip() for f in stops))
            raise UserError(f"check: {len(stops)} finding(s) stop this run ({topics}); mend what is marked stop above")

    def _refuse(self, error: UserError) -> None:
        self.report.findings.append(Finding("refused", "stop", f"a run is refused: {error}"))

    def _look_at_data(self, module: "PreferenceModule") -> None:
        from lit_pref.commands.check.pairs import overlap, pair_findings
        from lit_pref.commands.check.rendering import examples, render
        from lit_pref.commands.check.rows import Asked, row_findings
        from lit_pref.commands.check.target import strength_of, target_findings
        from lit_pref.modules.fitting import fit_objective

        data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
        splits = {"train": data.train_pairs, "val": data.val_pairs}
        tokenizer = module.policy.load_tokenizer()
        ends = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids} - {tokenizer.bos_token_id}
        ends.add(tokenizer.eos_token_id)
        self.report.findings += [self._read(), *self._selection(module)]
        try:
            fitted = fit_objective(module.objective, data.train_pairs)
            self.report.findings += [Finding("fitted", "ok", line) for line in fitted]
            self._strength = strength_of(module.objective)
        except UserError as error:
            self._refuse(error)
        asked = Asked(self._strict, self._max_refused)
        found = row_findings(splits, asked, tokenizer.chat_template is not None)
        for split, pairs in splits.items():
            found += pair_findings(split, pairs, tokenizer.bos_token_id, ends)
            if len(pairs):
                self.report.arrays[split] = Arrays(pairs.column("margin").astype(float), pairs.lengths)
        found += target_findings("train", splits["train"], self._strength) + overlap(*splits.values())
        self.report.findings += found
        self.report.rendered = [render(pair, tokenizer, ends) for pair in examples(splits["train"])]

    def _read(self) -> Finding:
        asked = f"{'strict' if self._strict else 'lenient'} and {self._max_refused:g}"
        words = "rows were read with data.bad_rows lenient and data.max_refused 1, to meet every fault in one go"
        return Finding("read", "ok", f"{words}; the run reads them with {asked}")

    def _selection(self, module: "PreferenceModule") -> Iterator[Finding]:
        data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
        numbers = {"pairs": len(data.train_pairs), "of": len(data.unselected)}
        if module.selected is not None:
            words = f"train: numbers are of the pairs that are chosen: {module.selected}"
            yield Finding("selection", "ok", words, "train", numbers=numbers)
        elif name := self._not_chosen or (data.selection and type(data.selection).__name__):
            words = f"train: numbers are of all {numbers['of']} pairs, before {name} chooses"
            words += "; --model makes the choice" if self._not_chosen else ""
            yield Finding("selection", "warning", words, "train", numbers=numbers)

    @staticmethod
    def _write(path: Path, content: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; name another file") from error


def _reads_a_model(selection: Any) -> bool:
    """Of the configuration of a selection."""
    module, _, name = selection.class_path.rpartition(".")
    reference = (selection.get("init_args") or {}).get("reference")
    return bool(getattr(import_module(module), name).reads_policy or reference)
