"""Train reward models in the testbed with Bradley-Terry and MMPO, and measure them against the known truth.

`python experiments/004_reward_models/run.py OUT` trains each objective on five seeds for 1, 3 and 10 epochs and
writes results.csv; finished trials are kept, so the same line resumes.
"""

import csv
import json
import sys
from pathlib import Path
from statistics import mean

from lit_pref import build
from lit_pref.commands.evaluate import evaluate
from lit_pref.commands.generate import generate
from lit_pref.commands.judge import judge
from lit_pref.testbed.make import make
from lit_pref.testbed.settings import Testbed

HERE = Path(__file__).parent
SEEDS, EPOCHS = range(5), (1, 3, 10)
TRUTH = {"probability": {"column": "p_true", "of": "chosen"}}
OF_TRUTH = {"data.mapping": TRUTH, "data.ignore_columns": ["margin"]}
OBJECTIVES = {
    "Bradley-Terry": {"class_path": "BradleyTerry"},
    "MMPO": {
        "class_path": "MMPO",
        "init_args": {"beta": 1.0, "gamma": 0.8, "reference": {"class_path": "NoReference"}},
    },
    "true probability": {"class_path": "BradleyTerry", "init_args": {"target": {"class_path": "ProbabilityColumn"}}},
}


def trial(out: Path, seed: int, name: str, epochs: int, world: Path, samples: Path) -> dict[str, float]:
    """Train one reward model and return its measures."""
    folder = out / f"{name.replace(' ', '-')}-{epochs}-{seed}"
    run = build(
        str(HERE / "reward.yaml"),
        {
            "testbed.seed": seed,
            "seed_everything": seed,
            "model.objective": OBJECTIVES[name],
            "trainer.max_epochs": epochs,
            **(OF_TRUTH if name == "true probability" else {}),
            "run_dir": str(folder),
        },
    )
    run.fit()
    evaluate(folder / "truth", "pairs", str(world / "val.jsonl"), str(folder), mapping=TRUTH, votes=float("inf"))
    judge(str(samples), folder / "judged", model=str(folder), best=8)
    judge(str(folder / "judged" / "best.jsonl"), folder / "gold", testbed=True, column="gold")
    found = json.loads((folder / "truth" / "report.json").read_text())["pairs"]["calibration"]
    measures = {key: found[key][0] for key in ("accuracy", "log_loss", "kl", "temperature")}
    measures["ece"] = found["equal_mass"]["value"]
    return measures | {"best_of_8": gold(folder / "gold" / "judged.jsonl", "gold")}


def gold(path: Path, column: str) -> float:
    """The mean of a column of a file."""
    return mean(json.loads(line)[column] for line in path.read_text().splitlines())


def main(out: Path) -> None:
    """Run all trials that are not in results.csv yet."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.csv"
    rows = list(csv.DictReader(results.open())) if results.exists() else []
    done = {(row["objective"], int(row["epochs"]), int(row["seed"])) for row in rows}
    for seed in SEEDS:
        world = make(Testbed(seed=seed))
        samples = out / f"samples-{seed}"
        if not (samples / "responses.jsonl").exists():
            prompts, policy = str(world / "prompts.jsonl"), str(world / "policy")
            generate(prompts, samples, model=policy, samples=8, temperature=1.0, max_new_tokens=16)
        for name in OBJECTIVES:
            for epochs in EPOCHS:
                if (name, epochs, seed) in done:
                    continue
                measures = trial(out, seed, name, epochs, world, samples / "responses.jsonl")
                rows.append({"objective": name, "epochs": epochs, "seed": seed, **measures})
                with results.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
