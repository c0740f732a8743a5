"""The cases of golden.py: small runs of every kind, on pairs and models that are made here from a fixed seed.

A refactoring that renames options, values, classes or outputs changes the tables in the first lines and nothing else,
so that the names in recordings stay.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYOUTS = {"padded": "padded", "prefix_shared": "prefix_shared"}
"""Layout in the names of cases -> value of the option."""
OPTIONS = {"print_summary": "print_summary", "model.layout": "model.layout", "model.policy": "model.policy"}
"""Option in this file -> option of the package, also as the beginning of a longer name."""
CLASSES: dict[str, str] = {}
"""Class in this file -> class of the package."""
EXTRA_RESPONSE = "extra_response"
"""The column of a further response to the prompt, which SELM reads."""
RENAMED: dict[str, str] = {"extra_response_change": "third_change"}
"""What the package calls a logged number, a column or a key of its JSON -> the name that recordings have for it."""
SENTENCES = ("says", "checked", "layout", "example", "rule", "what")
"""Keys of the JSON that commands write whose values are sentences."""


@dataclass
class Case:
    """Commands of the package, and the outputs to compare.

    Args:
        commands: from the folder with inputs and the folder of the case to arguments of `python -m lit_pref`, one
            list a process. Files `*.json` and `*.jsonl` in the folder of the case, and its `run`, are compared.
        reads_table: the numbers of the tables that are printed are compared too.
    """

    commands: Callable[[Path, Path], list[list[str]]]
    reads_table: bool = False


# Inputs

WORDS = ["red", "green", "blue", "tin", "iron", "oak", "elm", "cat", "dog", "owl", "one", "two", "three", "big", "old"]


def make_inputs(folder: Path) -> Path:
    """Pairs to train on and to hold out, and three small Llamas with one tokenizer of bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    write_pairs(folder / "train.jsonl", 30, seed=0)
    write_pairs(folder / "val.jsonl", 7, seed=1)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer([*special.values()]), **special)
    for seed, name in enumerate(("policy", "other", "another")):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(tokenizer)}
        config = LlamaConfig(**sizes, **ids, max_position_embeddings=256, initializer_range=0.2)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def byte_tokenizer(special: list[str]) -> Any:
    """A tokenizer without merges: nothing of it is learned, so nothing of it can change."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: k for k, token in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


def write_pairs(path: Path, number: int, seed: int) -> None:
    """Pairs of several lengths, some on one prompt; every seventh prefers its second text."""
    rng = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    prompts = [f"{text(6)} {k} :" for k in range(1 + 2 * number // 3)]
    with path.open("w", encoding="utf-8") as file:
        for k in range(number):
            sign = -1 if k % 7 == 3 else 1
            row: dict[str, Any] = {"prompt": prompts[k % len(prompts)], "chosen": f" {text(5)} good {k}"}
            row |= {"rejected": f" {text(7)} bad {k}", EXTRA_RESPONSE: f" {text(4)}"}
            row |= {"margin": round(sign * rng.uniform(0.1, 4.0), 3), "kind": f"k{k % 2}"}
            row["p_true"] = round(0.5 + sign * rng.uniform(0.01, 0.45), 3)
            row |= {f"weights_{side}": [[0, len(row[side]) // 2, 2.0]] for side in ("chosen", "rejected")}
            file.write(json.dumps(row) + "\n")


# Commands


def part(name: str, **arguments: Any) -> dict[str, Any]:
    """A class and its arguments, as the command line takes them."""
    return {"class_path": CLASSES.get(name, name), "init_args": arguments}


def options(values: dict[str, Any]) -> list[str]:
    """Options as arguments of the command line."""
    return [f"--{option(name)}={v if isinstance(v, str) else json.dumps(v)}" for name, v in values.items()]


def option(name: str) -> str:
    """The package's name of an option.

    >>> option("print_summary_not"), option("model.policy.path")
    ('print_summary_not', 'model.policy.path')
    """
    for here, there in OPTIONS.items():
        if f"{name}.".startswith(f"{here}."):
            return there + name.removeprefix(here)
    return name


def data(inputs: Path) -> dict[str, Any]:
    files = {"data.train": str(inputs / "train.jsonl"), "data.val": str(inputs / "val.jsonl")}
    return {"model.policy.path": str(inputs / "policy"), **files, "data.global_batch": 8, "data.columns": ["p_true"]}


def training(inputs: Path, place: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Eight optimizer steps on windows of 8, 8, 8 and 6 pairs, two validations beside the one before training."""
    values = data(inputs) | {"run_dir": str(place / "run"), "print_summary": False}
    values |= {"model.optimizer": part("AdamW", lr=2e-3, weight_decay=0.01), "model.schedule": part("Cosine", warmup=2)}
    values |= {"trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.max_epochs": 2}
    values |= {"trainer.log_every_n_steps": 1, "trainer.gradient_clip_val": 1.0}
    # Values name folders by {inputs} and {run}.
    text = json.dumps(values | changes)
    return json.loads(text.replace("{inputs}", str(inputs)).replace("{run}", str(place / "run")))


def fit(*runs: dict[str, Any]) -> Case:
    """A case of one or more commands that train in one run folder one after another."""

    def commands(inputs: Path, place: Path) -> list[list[str]]:
        return [["fit", *options(training(inputs, place, run))] for run in runs]

    return Case(commands)


def predicted(inputs: Path, place: Path) -> list[list[str]]:
    """Train, then read the held-out pairs with the last checkpoint."""
    values = training(inputs, place, {"model.objective": OBJECTIVES["mmpo"], "trainer.max_steps": 3})
    again = {"config": str(place / "run" / "config.yaml"), "run_dir": values["run_dir"], "ckpt_path": "last"}
    return [["fit", *options(values)], ["predict", *options(again)], ["validate", *options(again)]]


def checked(inputs: Path, place: Path) -> list[list[str]]:
    values = training(inputs, place, {"model.objective": OBJECTIVES["mmpo"]})
    return [["check", "--json", str(place / "check.json"), *options(values)]]


def selected(inputs: Path, place: Path) -> list[list[str]]:
    values = training(inputs, place, {"model.objective": OBJECTIVES["mmpo"], **SELECTION})
    return [["select", "--out", str(place / "selected.jsonl"), *options(values)]]


def quickstart(inputs: Path, place: Path) -> list[list[str]]:
    return [["fit", "--config", "configs/quickstart.yaml", "--run_dir", str(place / "run")]]


# Cases

SINGLE = [part("InitialPolicy")]
THREE = [*SINGLE, part("Pretrained", path="{inputs}/other"), part("Pretrained", path="{inputs}/another")]
COMPOSITION = {
    "target": part("MarginTarget", gamma=1.1),
    "reference": part("Harmonic", eta=0.1),
    "temperature": part("EpsilonStep", epsilon=0.02),
}
OBJECTIVES = {
    "dpo": part("DPO", beta=0.1),
    "mmpo": part("MMPO", beta=0.1, gamma=1.1),
    "mrpo": part("MRPO", beta=0.1, eta=0.1),
    "epsilon_dpo": part("EpsilonDPO", beta=0.05, epsilon=0.02),
    "composition": part("DPO", beta=0.1, **COMPOSITION),
    "selm": part("SELM", beta=0.1, alpha=0.01),
    "sft": part("SFT"),
}
REFERENCES = {"mrpo": THREE, "composition": THREE[:2]}
SELECTION = {"data.selection": part("AlignmentPotential", keep=0.5), "data.group_column": "kind"}
DROPOUT = {"data.micro_batch": 3, "model.policy.dropout": 0.1}
"""Random numbers in every micro-batch, which a resumed run must draw again; refused in prefix-shared rows."""


def method(name: str, layout: str, **changes: Any) -> dict[str, Any]:
    """The options of a method in a layout."""
    values = {"model.objective": OBJECTIVES[name], "model.layout": LAYOUTS[layout]}
    return values | ({"model.references": REFERENCES[name]} if name in REFERENCES else {}) | changes


def cases() -> Iterator[tuple[str, Case]]:
    for name in OBJECTIVES:
        for layout in LAYOUTS:
            yield f"{name}/{layout}", fit(method(name, layout))
    yield "accumulation/padded", fit(method("epsilon_dpo", "padded", **DROPOUT))
    yield "accumulation/prefix_shared", fit(method("epsilon_dpo", "prefix_shared", **{"data.micro_batch": 3}))
    adapter = {"model.policy.lora": {"r": 4, "alpha": 8}, "model.policy.gradient_checkpointing": True}
    yield "lora", fit(method("mmpo", "prefix_shared", **adapter))
    for kind, stored in {"stored": True, "live": False}.items():
        yield f"reference/{kind}", fit(method("mrpo", "padded", **{"model.reference_store": stored}))
    yield "max_tokens", fit(method("mmpo", "prefix_shared", **{"data.max_tokens": 400, "data.val_batch": 4}))
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.micro_batch": 2}
    yield "two_processes", fit(method("epsilon_dpo", "prefix_shared", **two))
    whole = method("epsilon_dpo", "padded", **DROPOUT)
    yield "resumed", fit({**whole, "stop_at_step": 5}, {**whole, "ckpt_path": "last"})
    # Margins fitted, pairs chosen, numbers by group and margin; a log that keeps doubles, which TensorBoard does not.
    objective = part("MMPO", beta=0.1, gamma=part("Fitted", mean_probability=0.8))
    split = {"model.margin_bins": 2, "trainer.logger": part("CSVLogger", save_dir="{run}"), "trainer.max_epochs": 4}
    yield "chosen_pairs", fit({"model.objective": objective, **SELECTION, **split})
    weighted = part("DPO", beta=0.1, tokens=part("ColumnTokens", column="weights"))
    yield "token_weights", fit({"model.objective": weighted, "model.layout": LAYOUTS["prefix_shared"]})
    yield "bf16", fit(method("mmpo", "padded", **{"trainer.precision": "bf16-mixed"}))
    yield "predict", Case(predicted)
    yield "check", Case(checked)
    yield "check_model", Case(lambda inputs, place: [[*checked(inputs, place)[0], "--model"]])
    yield "select", Case(selected)
    yield "quickstart", Case(quickstart, reads_table=True)


CASES: dict[str, Case] = dict(cases())
