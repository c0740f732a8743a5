"""`python -m lit_pref compare`: finished runs against each other, whatever they trained."""

import json as json_format
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt

from lit_pref.errors import UsageError
from lit_pref.printing import say


def compare(
    *runs: str,
    baseline: str | None = None,
    html: Path | None = None,
    json: Path | None = None,
    records: Literal["val", "validate", "test", "predict"] = "val",
    step: int | None = None,
    pairs: NonNegativeInt = 10,
) -> None:
    """Compare run folders: settings, held-out metrics on common pairs, calibration, curves, and pairs as text.

    Every metric has a 95 % interval over prompts, and its difference to the baseline one of its own on the same pairs,
    with a sign test. Metrics that would mean nothing side by side, such as losses of different objectives, are said to
    be so. Policies and reward models can be compared; nothing is trained or scored.

    Args:
        runs: run folders, two or more.
        baseline: the run that the others are compared with, by folder or name; null: the first.
        html: write a page with tables, figures and the pairs on which the runs differ most, as one self-contained file.
        json: write all numbers as JSON.
        records: which records are compared: val, those of `fit`, or those that the named command has written.
        step: the optimizer step whose records are compared; null: the newest of each run.
        pairs: how many of the pairs on which the runs differ most are shown as text.

    Raises:
        UsageError: fewer than two runs, or a folder to write to that does not exist.
        UserError: a folder is none of a run or has no records, or the runs have no pair in common.
    """
    refuse_folders(html=html, json=json)
    from lit_pref.comparing.comparison import compare_runs
    from lit_pref.comparing.page import page
    from lit_pref.comparing.run_record import read_runs
    from lit_pref.comparing.terminal import lines

    comparison = compare_runs(read_runs(runs, records, step, baseline), pairs)
    if html is not None:
        html.write_text(page(comparison), encoding="utf-8")
    if json is not None:
        text = json_format.dumps(comparison.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        json.write_text(text + "\n", encoding="utf-8")
    for block in lines(comparison):
        say(block + "\n")
    for name, file in (("page", html), ("numbers", json)):
        if file is not None:
            say(f"{name:<11} {file}")
    if html is None:
        say("Next: --html compare.html writes a page with figures and all pairs as text")
    else:
        say(f"Next: look at {html}")


def refuse_folders(**files: Path | None) -> None:
    """Refuse files to write, by the names of their options, that are folders or lie in none.

    Raises:
        UsageError: one cannot be written.
    """
    for name, file in files.items():
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            reason = "is a folder" if file.is_dir() else f"cannot be written: there is no folder {file.parent}"
            raise UsageError(f"--{name} {file} {reason}; name a file")
