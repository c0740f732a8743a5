"""Records the numbers of many small runs, and compares two recordings: the proof that a refactoring changes no number.

    python tools/golden.py record --out before.json                    on the commit before
    python tools/golden.py record --out after.json                     on the commit after
    python tools/golden.py compare before.json after.json              exit code 1 where anything differs or is missing

`record --root CHECKOUT` runs the package of another checkout, so that one version of this tool can record both; cases
are chosen by `--only CASE ...` and left out by `--skip CASE ...` (`quickstart` takes minutes, all others together about
five on one core). Recordings are not committed: they are compared to the last bit, which depends on the machine's
kernels and on the libraries' versions. Make both on one machine.

The package is used through `python -m lit_pref` and the files that runs leave, and is never imported: its insides may
be renamed. A refactoring that renames options, values, tags or columns changes the tables in the first lines of
`golden_cases.py`; a recording of the commit before is made with the tables as they were then.

Left out are throughput and memory, which depend on the load of the machine, and the wording of the sentences in what
`check` writes, of which the numbers are compared. Paths are replaced.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from golden_cases import CASES, RENAMED, SENTENCES, Case, make_inputs

MASKED = ("per_second", "memory")
"""Parts of the names of logged numbers that depend on the machine's load."""
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?")


# Recording


def record(root: Path, names: list[str], keep: Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """The results of the cases by name, and the names of those whose commands failed.

    Args:
        root: the checkout whose package runs.
        names: of cases.
        keep: where the runs are left; None for a temporary folder.
    """
    results, failed = {}, []
    folder = Path(tempfile.mkdtemp(prefix="golden-")) if keep is None else keep
    try:
        inputs = make_inputs(folder / "inputs")
        for name in names:
            print(name, flush=True)
            place = folder / name.replace("/", "-")
            place.mkdir()
            try:
                results[name] = run_case(CASES[name], root, inputs, place)
            except subprocess.CalledProcessError as error:
                failed.append(name)
                print(f"{name} FAILED: {error}\n{(error.stdout or '')[-3000:]}{error.stderr[-3000:]}", flush=True)
    finally:
        if keep is None:
            shutil.rmtree(folder)
    return results, failed


def run_case(case: Case, root: Path, inputs: Path, place: Path) -> dict[str, Any]:
    """Run the commands of a case; return the numbers in their output and in the files they write."""
    environment = {**os.environ, "PYTHONPATH": str(root), "LIT_PREF_CACHE": str(place / "cache")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "100"}
    result: dict[str, Any] = {}
    for command in case.commands(inputs, place):
        line = [sys.executable, "-m", "lit_pref", *command]
        done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, check=True)
        if case.reads_table:
            result["table"] = table_numbers(done.stdout)
    return result | results_of(place)


def results_of(place: Path) -> dict[str, Any]:
    """Everything that is compared of the files in the folder of a case."""
    result: dict[str, Any] = {}
    run = place / "run"
    if any(run.glob("events.out.tfevents*")):
        result["logged"] = events(run)
    for file in sorted(run.glob("**/metrics.csv")):
        result["logged in double precision"] = logged_lines(file)
    for file in sorted(run.glob("records/*.parquet")):
        result.setdefault("records", {})[file.stem] = records(file)
    for file in sorted((run / "hf").glob("*.safetensors")):
        result.setdefault("weights", {})[file.name] = digest_of_tensors(file)
    for file in sorted(place.glob("*.json*")):
        text = file.read_text(encoding="utf-8").replace(str(place.parent), "FOLDER")
        content: Any = json.loads(text) if file.suffix == ".json" else [json.loads(row) for row in text.splitlines()]
        result[file.name] = numbers_of_sentences(content)
    return result


def events(folder: Path) -> dict[str, list[list[float]]]:
    """[step, value] of every scalar by its tag, less those that depend on the machine's load."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in read.Tags()["scalars"] if not any(part in tag for part in MASKED)]
    return {renamed(tag): [[event.step, event.value] for event in read.Scalars(tag)] for tag in sorted(tags)}


def logged_lines(file: Path) -> list[dict[str, str]]:
    """The lines of a CSV of logged numbers, which has the digits of doubles."""
    import csv

    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    kept = [name for name in rows[0] if not any(part in name for part in MASKED)]
    return [{renamed(name): row[name] for name in kept if row[name]} for row in rows]


def records(file: Path) -> dict[str, Any]:
    """The number of rows of a Parquet file, a hash over all, and the first three as they are."""
    import pyarrow.parquet

    rows = [{renamed(k): v for k, v in row.items()} for row in pyarrow.parquet.read_table(file).to_pylist()]
    rows.sort(key=lambda row: row["id"])
    return {"pairs": len(rows), "sha256": digest(json.dumps(rows, sort_keys=True).encode()), "first": rows[:3]}


def digest_of_tensors(file: Path) -> str:
    """A hash over names, dtypes, shapes and bytes of all tensors of a safetensors file, by name."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    parts = []
    for name, tensor in sorted(header.items()):
        begin, end = tensor["data_offsets"]
        parts += [f"{name} {tensor['dtype']} {tensor['shape']}\n".encode(), content[start + begin : start + end]]
    return digest(b"".join(parts))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def renamed(name: str) -> str:
    """The name that recordings have for a tag or a column, part by part.

    >>> renamed("train/loss")
    'train/loss'
    """
    return "/".join(RENAMED.get(part, part) for part in name.split("/"))


def numbers_of_sentences(content: Any) -> Any:
    """Content of a JSON file with each sentence replaced by its numbers: wording may improve, numbers stay.

    >>> numbers_of_sentences({"says": "12 pairs, 3.5 % tied", "topic": "ties", "numbers": {"ties": 0.035}})
    {'says': ['12', '3.5'], 'topic': 'ties', 'numbers': {'ties': 0.035}}
    """
    if isinstance(content, dict):
        return {renamed(key): _numbers_under(key, value) for key, value in content.items()}
    if isinstance(content, list):
        return [numbers_of_sentences(entry) for entry in content]
    return content


def _numbers_under(key: str, value: Any) -> Any:
    if key in SENTENCES and isinstance(value, str):
        return NUMBER.findall(value)
    return renamed(value) if key == "topic" else numbers_of_sentences(value)


def table_numbers(text: str) -> list[list[str]]:
    """The numbers of every row of the tables in what a run prints.

    >>> table_numbers("step 1\\n│ preference accuracy │ 0.512 │ 0.712 │")
    [['0.512', '0.712']]
    """
    rows = [line.split("│")[2:] for line in text.splitlines() if line.startswith("│")]
    return [NUMBER.findall(" ".join(cells)) for cells in rows]


# Comparing


def leaves(content: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested content under its path, written so that all its digits count and NaN equals NaN."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from leaves(value, f"{at} > {key}" if at else key)
    elif isinstance(content, list) and content:
        for k, value in enumerate(content):
            yield from leaves(value, f"{at}[{k}]")
    else:
        yield at, repr(content)


def first_difference(before: Any, after: Any) -> str | None:
    """The first place where two results differ, with both values, and how many do; None where they are identical."""
    old, new = dict(leaves(before)), dict(leaves(after))
    differing = [key for key in [*old, *(key for key in new if key not in old)] if old.get(key) != new.get(key)]
    if not differing:
        return None
    key = differing[0]
    values, total = f"{old.get(key, 'nothing')} -> {new.get(key, 'nothing')}", len({**old, **new})
    return f"{key}: {values}  ({len(differing)} of {total} values differ)"


def compare(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[tuple[str, str]], bool]:
    """Return the verdict on each case as text, and whether all cases are identical.

    >>> compare({"dpo": {"loss": 0.5}}, {"dpo": {"loss": 0.5}})
    ([('dpo', 'identical')], True)
    """
    rows = []
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            rows.append((name, f"missing in the {'first' if name not in before else 'second'} recording"))
            continue
        difference = first_difference(before[name], after[name])
        rows.append((name, "identical" if difference is None else f"different  {difference}"))
    return rows, all(verdict == "identical" for _, verdict in rows) and bool(rows)


# The command line


def made(root: Path) -> dict[str, Any]:
    """Return the commit, the kind of machine and the library versions that a recording depends on."""
    from importlib.metadata import version

    libraries = {name: version(name) for name in ("torch", "transformers", "lightning", "peft", "numpy")}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return {"commit": commit.stdout.strip(), "machine": platform.machine(), "libraries": libraries}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the cases and write what they give")
    recording.add_argument("--out", type=Path, required=True)
    recording.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout that runs")
    recording.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", default=list(CASES))
    recording.add_argument("--skip", nargs="+", choices=CASES, metavar="CASE", default=[])
    recording.add_argument("--keep", type=Path, help="a new folder in which the runs stay")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--only", nargs="+", metavar="CASE", help="of both recordings, where one has fewer cases")
    options = parser.parse_args(arguments)
    if options.command == "record":
        names = [name for name in options.only if name not in options.skip]
        root = options.root.resolve()
        results, failed = record(root, names, options.keep and options.keep.resolve())
        content = {"made": made(root), "cases": results}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"{len(results)} cases in {options.out}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
        return 1 if failed else 0
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (options.before, options.after))
    old, new = (
        {name: case for name, case in recording["cases"].items() if name in (options.only or recording["cases"])}
        for recording in (before, after)
    )
    rows, same = compare(old, new)
    width = max((len(name) for name, _ in rows), default=0)
    print("\n".join(f"{name:{width}}  {verdict}" for name, verdict in rows) or "no case to compare")
    if before["made"]["libraries"] != after["made"]["libraries"]:
        print("note: the libraries' versions differ, and numbers may differ with them")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
