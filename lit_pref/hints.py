"""Sentences for unknown names, with the nearest known ones or the names that other libraries use."""

import difflib
import re
from collections.abc import Iterable

RENAMED = {"closing_words": "print_summary"}
"""Options by their old names, with the new ones."""

ELSEWHERE = {
    "lr learning_rate": "model.optimizer.lr",
    "optim optimizer": "model.optimizer",
    "weight_decay": "model.optimizer.weight_decay",
    "lr_scheduler lr_scheduler_type scheduler": "model.schedule",
    "warmup warmup_ratio warmup_steps": "model.schedule.warmup",
    "beta": "model.objective.beta",
    "gamma": "model.objective.gamma",
    "loss loss_type loss_fn objective": "model.objective",
    "label_smoothing": "model.objective.target",
    "epochs n_epochs num_epochs num_train_epochs max_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "batch_size train_batch_size gradient_accumulation_steps accumulate_grad_batches": "data.global_batch",
    "per_device_train_batch_size micro_batch_size": "data.micro_batch",
    "eval_batch_size per_device_eval_batch_size": "data.val_batch",
    "max_length max_seq_length max_seq_len": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "dataset dataset_name dataset_path train_dataset train_file data_path train_data data.path data.file": "data.train",
    "eval_dataset eval_file val_file validation_file val_dataset": "data.val",
    "dataloader_num_workers num_workers": "data.workers",
    "seed": "seed_everything",
    "output_dir save_dir default_root_dir log_dir": "run_dir",
    "checkpoint ckpt resume resume_from_checkpoint": "ckpt_path",
    "bf16 fp16 precision mixed_precision": "trainer.precision",
    "torch_dtype dtype": "model.policy.dtype",
    "attn_implementation": "model.policy.attention",
    "gradient_checkpointing": "model.policy.gradient_checkpointing",
    "torch_compile": "model.policy.compile",
    "trust_remote_code": "model.policy.trust_remote_code",
    "model_name_or_path model_name model_path base_model policy model.path model.name": "model.policy.path",
    "tokenizer tokenizer_name": "model.policy.tokenizer",
    "lora_r lora_rank use_lora use_peft peft_config": "model.policy.lora.r",
    "lora_alpha": "model.policy.lora.alpha",
    "lora_dropout": "model.policy.lora.dropout",
    "lora_target_modules": "model.policy.lora.target_modules",
    "ref_model ref_model_name_or_path reference_model references": "model.references",
    "precompute_ref_log_probs": "model.reference_store",
    "padding_free": "model.layout",
    "report_to logger": "trainer.logger",
    "save_steps save_strategy save_total_limit": "trainer.callbacks",
    "eval_steps eval_strategy evaluation_strategy": "trainer.val_check_interval",
    "logging_steps": "trainer.log_every_n_steps",
    "max_grad_norm gradient_clip_val": "trainer.gradient_clip_val",
    "deepspeed fsdp strategy": "trainer.strategy",
    "devices gpus n_gpus": "trainer.devices",
    "accelerator device": "trainer.accelerator",
}
"""Names of TRL, of transformers and of Lightning, with the option of a run that does the same."""

EXPLAINED = {
    "trainer.callbacks": "checkpoints are saved by a callback: --trainer.callbacks+=Checkpoints "
    "--trainer.callbacks.every 50",
    "data.global_batch": "it counts the pairs of an optimizer step over all devices; data.micro_batch bounds those of "
    "a forward pass, and accumulation follows from both",
    "data.micro_batch": "it bounds the pairs of a forward pass; data.global_batch counts those of an optimizer step",
    "trainer.precision": "such as bf16-mixed",
    "model.objective": "such as DPO, MMPO or SFT",
    "model.objective.target": "label smoothing is --model.objective.target Smoothed",
    "model.references": "a list of classes, such as {class_path: Pretrained, init_args: {path: FOLDER}}",
    "trainer.logger": "TensorBoard files are written by default",
    "model.schedule.warmup": "the share of all steps, or a number of them",
    "trainer.val_check_interval": "the share of an epoch, or a number of steps",
    "ckpt_path": "`last` is the newest of the run folder",
}
"""What else a user of another library should know about an option."""

ADVICE = {
    "center_rewards_coefficient": "it is a term of the objective: terms: [{class_path: Center, init_args: "
    "{coefficient: 0.01}}] under its init_args",
    **dict.fromkeys(
        ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
        "a reference that follows the policy is model.references: [{class_path: MovingReference, init_args: {alpha: "
        "0.6, every: 512}}]",
    ),
    "margin": "a stronger preference requires a larger difference by offset: {class_path: ColumnOffset, init_args: "
    "{column: margin}} under the init_args of the objective (a constant one by MarginOffset), and MMPO makes "
    "probabilities of margins",
    "reward_model": "a reward model is trained with model.policy.head: scalar; `judge` and `evaluate` use one, as "
    "--model FOLDER",
}
"""What to do instead of an option or argument that is none of a run and has no counterpart of one name."""

OF_COMMANDS = {
    ("judge", "mapping"): "judge has none: prompts that are messages are lists of {role, content}, and `generate "
    "--mapping` writes them so",
}
"""The same for options of one command."""

_OURS = {name: option for names, option in ELSEWHERE.items() for name in names.split()}
_COMMANDS = {"train": "fit", "run": "fit", "sft": "fit", "dpo": "fit", "eval": "validate", "evaluate": "validate"}
_COMMANDS |= {"merge": "export", "save": "export", "inspect": "check", "infer": "predict"}


def nearest_names(name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Up to `most` known names that are most similar to `name`, regardless of case.

    >>> nearest_names("mmop", ["DPO", "MMPO"])
    ['MMPO']
    """
    lower = {k.lower(): k for k in known}
    if name.lower() in lower:
        return [lower[name.lower()]]
    return [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=most, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence that suggests up to two similar names; empty if none is similar.

    >>> did_you_mean("bta", ["beta", "gamma"], prefix="--")
    '; did you mean --beta?'
    """
    guesses = nearest_names(name, known, most=2, cutoff=0.5)
    return f"; did you mean {' or '.join(prefix + guess for guess in guesses)}?" if guesses else ""


def command_meant(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that suggests the command of another library's name, or a similar one.

    >>> command_meant("train", ["fit", "test"])
    '; did you mean fit?'
    """
    return f"; did you mean {_COMMANDS[name]}?" if name in _COMMANDS else did_you_mean(name, known)


def advice(name: str) -> str:
    """The end of a sentence that says what to do instead of a setting of another library; empty for other names.

    >>> advice("reward_model")[:38]
    '; a reward model is trained with model'
    """
    return f"; {ADVICE[name]}" if name in ADVICE else ""


def argument_meant(name: str, key: str, known: Iterable[str]) -> str:
    """The end of a sentence that suggests an argument of the class at `key` for one of another library or for a typo.

    >>> argument_meant("learning_rate", "model.optimizer", ["lr", "betas"])
    '; did you mean lr?'
    """
    owner, _, ours = _OURS.get(name, "").rpartition(".")
    if owner == key and ours in known:
        return f"; did you mean {ours}?"
    return (advice(name) if key.startswith("model") else "") or did_you_mean(name, known)


def unknown_option(name: str, options: Iterable[str], in_file: bool = False, command: str = "") -> str:
    """The sentence for an unknown option of a command or key of a file; for a renamed one it gives the new name.

    >>> unknown_option("num_train_epochs", [])
    'unknown option --num_train_epochs; here it is called --trainer.max_epochs'
    """
    dashes = "" if in_file else "--"
    if name in RENAMED:
        return f"{name} is called {RENAMED[name]} now: write {dashes}{RENAMED[name]}"
    key = re.sub(r"\.(class_path|init_args\b.*)$", "", name)
    unknown = f"unknown key {name!r} in the configuration" if in_file else f"unknown option --{name}"
    options, plain = list(options), key.replace("-", "_").lower()
    ours = _OURS.get(plain) or _OURS.get(plain.rpartition(".")[-1])
    if how := OF_COMMANDS.get((command, plain)):
        return f"{unknown}; {how}"
    if not plain.startswith(("data.", "trainer.")) and (instead := advice(plain.rpartition(".")[-1])):
        return unknown + instead
    if ours in (None, key) or nearest_names(key, options, cutoff=0.93):  # it is our name, mistyped
        return f"{unknown}{did_you_mean(key, options, prefix=dashes)}"
    explained = f" ({EXPLAINED[ours]})" if ours in EXPLAINED else ""
    return f"{unknown}; here it is called {dashes}{ours}{explained}"


def stray_word(word: str) -> str:
    """The sentence for a word on the command line that is neither an option nor the value of one.

    >>> stray_word("dpo.yaml")
    "unknown word 'dpo.yaml' on the command line; a configuration file is given as --config dpo.yaml"
    """
    how = "options begin with --"
    if word.endswith((".yaml", ".yml")):
        how = f"a configuration file is given as --config {word}"
    elif any(sign in word for sign in "{}[]"):
        how = "put a value that contains spaces into quotes: --NAME '{a: b, c: d}'"
    elif "=" in word:
        how = f"options begin with --: --{word}"
    return f"unknown word {word!r} on the command line; {how}"
