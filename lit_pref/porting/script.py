"""Translates the arguments of TRL's scripts that belong to no trainer: the model, its adapters, and the data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_pref.porting.losses import Settings

MODEL = {
    "model_name_or_path": "model.policy.path",
    "model_revision": "model.policy.revision",
    "attn_implementation": "model.policy.attention",
}
"""Arguments of TRL's ModelConfig whose value here is the same, with the option."""

LORA = {
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "target_modules",
    "lora_modules_to_save": "modules_to_save",
}
"""Its arguments of adapters, which it reads if `use_peft` is set."""

LORA_DEFAULTS: dict[str, Any] = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
"""TRL's defaults of them."""

DTYPES = ("dtype", "torch_dtype")
DATA = ("dataset_name", "dataset_train_split", "dataset_test_split")
FILES = (".json", ".jsonl", ".csv", ".parquet", ".gz")


def script_options(given: Settings) -> dict[str, Any]:
    """Return the options that arguments of TRL's scripts become.

    >>> script_options({"model_name_or_path": "runs/sft", "use_peft": True, "lora_r": 8, "dataset_name": "pairs.jsonl"})
    {'model.policy.path': 'runs/sft', 'model.policy.lora': {'r': 8, 'alpha': 32, 'dropout': 0.05}, \
'data.train': 'pairs.jsonl'}
    """
    options = {option: given[name] for name, option in MODEL.items() if given.get(name) is not None}
    for dtype in (str(given[name]).removeprefix("torch.") for name in DTYPES if given.get(name)):
        options |= {} if dtype == "auto" else {"model.policy.dtype": dtype}
    if given.get("use_peft"):
        values = LORA_DEFAULTS | {name: given[name] for name in LORA if given.get(name) is not None}
        options["model.policy.lora"] = {LORA[name]: value for name, value in values.items()}
    if name := given.get("dataset_name"):
        local = str(name).endswith(FILES) or Path(str(name)).exists()
        options["data.train"] = name if local else f"{name}:{given.get('dataset_train_split', 'train')}"
        if not local and given.get("eval_strategy", "no") != "no":
            options["data.val"] = f"{name}:{given.get('dataset_test_split', 'test')}"
    return options


def placed(given: Settings) -> set[str]:
    """Return the arguments that `script_options` has read."""
    names = {*MODEL, *(DATA if given.get("dataset_name") else ())}
    names |= {name for name in DTYPES if given.get(name) != "auto"}
    return names | ({"use_peft", *LORA} if given.get("use_peft") else set())


def script_remarks(given: Settings) -> Iterator[str]:
    """Yield differences that remain."""
    if given.get("use_peft") and given.get("lora_target_modules") is None:
        yield (
            "lora_target_modules: peft chooses layers by the architecture then, mostly q_proj and v_proj; here all "
            "linear layers but the head get an adapter: name them as model.policy.lora.target_modules"
        )
