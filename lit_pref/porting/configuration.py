"""Translates the arguments of a TRL configuration into the configuration of a run."""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from lit_pref.errors import UsageError
from lit_pref.hints import advice, did_you_mean, our_option
from lit_pref.other_names import EXPLAINED
from lit_pref.porting.arguments import arguments_of, is_file
from lit_pref.porting.losses import Settings, trainer_title
from lit_pref.porting.objective import OF_LOSS, objective_of, references_of, unread
from lit_pref.porting.script import placed, script_options, script_remarks
from lit_pref.porting.steps import Options, checkpoints, logging, share_remark, validation, warmup, warmup_ratio

COMMON: dict[str, Any] = {
    "optim": "adamw_torch_fused",
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "max_grad_norm": 1.0,
    "max_length": 1024,
    "seed": 42,
    "gradient_checkpointing": True,
    "fp16": False,
    "eval_strategy": "no",
}
"""TRL's defaults of settings that a run here has too, so that they are written even if they are not given."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "dpo": COMMON
    | {
        "loss_type": ["sigmoid"],
        "loss_weights": None,
        "beta": 0.1,
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
        "discopop_tau": 0.05,
        "sync_ref_model": False,
        "ref_model_mixup_alpha": 0.6,
        "ref_model_sync_steps": 512,
    },
    "cpo": COMMON
    | {
        "loss_type": "sigmoid",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "cpo_alpha": 1.0,
        "simpo_gamma": 0.5,
        "alpha": 0.0,
    },
    "orpo": COMMON | {"beta": 0.1},
    "reward": COMMON | {"learning_rate": 1e-4, "center_rewards_coefficient": None},
}
"""TRL's defaults for each trainer: those in common, and those of its losses."""

SAME = (
    *("learning_rate", "weight_decay", "max_grad_norm", "max_length", "max_prompt_length", "seed", "data_seed"),
    *("output_dir", "dataloader_num_workers", "trust_remote_code", "gradient_checkpointing"),
    *("per_device_eval_batch_size", "router_aux_loss_coef", "full_determinism", "resume_from_checkpoint"),
)
"""Settings whose value here is the same."""

FLOORED = ("cosine_with_min_lr",)
"""Schedules of transformers that end above 0."""

FLOORS = ("min_lr", "min_lr_rate")
"""Their arguments for the final rate: as such, and as a share of the peak; transformers takes one of them."""


def yaml_of(text: str) -> str:
    """Return the configuration of a run that trains as a TRL trainer with these arguments would.

    Comments name settings that have no place, and differences that remain.

    Args:
        text: see `arguments_of`.

    Raises:
        UsageError: an argument is unknown, or has a value that has no counterpart here.
    """
    trainer, given = arguments_of(text)
    title = trainer_title(trainer)
    settings = DEFAULTS[trainer] | given
    for name in given:
        if not (name in settings and name in DEFAULTS[trainer]) and not our_option(name) and not advice(name):
            known = {*DEFAULTS[trainer], *SAME}
            raise UsageError(f"--from_trl: {title} has no argument {name!r}{did_you_mean(name, known)}")
    objective, remarks = objective_of(trainer, settings, given)
    options: Options = {"model.policy.path": "FOLDER"}
    if trainer == "reward":
        options["model.policy.head"] = "scalar"
    options["model.objective"] = objective
    if references := references_of(trainer, settings):
        options["model.references"] = references
    for name, value in settings.items():
        options |= converted(name, value, settings)
    options |= script_options(given)
    options.setdefault("data.train", "pairs.jsonl")
    rest = {name: value for name, value in given.items() if name not in placed(given)}
    remarks += [remark for name, value in rest.items() for remark in _left_out(name, value, settings, trainer)]
    remarks += script_remarks(given)
    if is_file(text) and trainer == "dpo" and "loss_type" not in given:
        remarks.append("If the file is that of another trainer, add `trainer: reward`, `orpo` or `cpo` to it.")
    head = [f"# TRL's {title} trainer, with its defaults; data.global_batch is for one device."]
    for remark in remarks:
        head += textwrap.wrap(remark, 110, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
    return "\n".join(head) + "\n" + yaml.safe_dump(_nested(options), sort_keys=False, default_flow_style=None)


def converted(name: str, value: Any, settings: Settings) -> Options:
    """Return the options that one setting becomes; none if it has no place of its own."""
    if value is None:
        return {}
    if name in SAME:
        return {our_option(name): value}
    return CONVERSIONS[name](value, settings) if name in CONVERSIONS else {}


def _left_out(name: str, value: Any, settings: Settings, trainer: str) -> Iterator[str]:
    """Yield a remark for each given setting that has no option here."""
    if name == "lr_scheduler_kwargs":
        read = FLOORS if settings["lr_scheduler_type"] in FLOORED else ()
        for key in sorted({*_mapping(name, value)} - {*read}):
            yield f"{name}: {settings['lr_scheduler_type']} reads no {key} here, see model.schedule."
    if name == "max_length" and value is None:
        yield "max_length=None: TRL cuts no pair then; here data.max_length is 1024 by default: raise it if need be."
    if value in (None, False) or name in READ_WITH_OTHERS:
        return
    option = our_option(name)
    instead = f"here it is {option}" + (f" ({EXPLAINED[option]})" if option in EXPLAINED else "")
    instead = advice(name).removeprefix("; ") or instead
    if name in OF_LOSS:
        if why := unread(trainer, name, settings, DEFAULTS[trainer]):
            yield f"{name}={value}: {why}; {instead}"
    elif remark := share_remark(name, value, settings):
        yield remark
    elif not converted(name, value, settings):
        yield f"{name}={value}: {instead}"


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    """The value of a setting that is a mapping or None."""
    if not isinstance(value, Mapping | None):
        raise UsageError(f"--from_trl: {name}={value!r} is no mapping of names to values: write {{'NAME': VALUE}}")
    return value or {}


def _schedule(value: Any, settings: Settings) -> Options:
    known = {"linear": "Linear", "cosine": "Cosine", "constant": "Flat", "constant_with_warmup": "Flat"}
    known |= dict.fromkeys(FLOORED, "Cosine")
    if value not in known:
        raise UsageError(f"--from_trl: lr_scheduler_type {value!r} is none of {', '.join(known)}, which exist here")
    given = _mapping("lr_scheduler_kwargs", settings.get("lr_scheduler_kwargs"))
    arguments = {}
    if value in FLOORED and given.get("min_lr_rate") is not None:
        arguments = {"floor": float(given["min_lr_rate"])}
    elif value in FLOORED and given.get("min_lr") is not None:
        arguments = {"floor": float(given["min_lr"]) / float(settings["learning_rate"])}
    return {"model.schedule": {"class_path": known[value], **({"init_args": arguments} if arguments else {})}}


def _optimizer(value: Any, settings: Settings) -> Options:
    known = {"adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop"}
    name = known.get(str(value).partition("_")[0])
    if name is None or str(value).endswith(("bit", "bnb", "4bit", "8bit")):
        raise UsageError(f"--from_trl: optim {value!r} is no optimizer of torch: name a class as model.optimizer")
    own = {"betas": [settings["adam_beta1"], settings["adam_beta2"]], "eps": settings["adam_epsilon"]}
    return {"model.optimizer": {"class_path": name, "init_args": own if name == "AdamW" else {}}}


def _batch(value: Any, settings: Settings) -> Options:
    steps = settings["gradient_accumulation_steps"]
    return {"data.global_batch": value * steps, "data.micro_batch": value}


def _epochs(value: Any, settings: Settings) -> Options:
    if (settings.get("max_steps") or 0) <= 0 and float(value) % 1:
        raise UsageError(
            f"--from_trl: num_train_epochs is {value}, and a run here has whole epochs: give max_steps instead, the "
            "optimizer steps of that many epochs"
        )
    return {"trainer.max_epochs": int(float(value))}


def _precision(value: Any, settings: Settings) -> Options:
    kind = "16-mixed" if value else "bf16-mixed" if settings.get("bf16", True) else "32-true"
    return {"trainer.precision": kind}


def _model(value: Any, settings: Settings) -> Options:
    if not isinstance(value, Mapping):
        return {}
    found = {our_option(name): value[name] for name in value if our_option(name).startswith("model.policy.")}
    return {name: str(chosen).removeprefix("torch.") for name, chosen in found.items()}


CONVERSIONS: dict[str, Callable[[Any, Settings], Options]] = {
    "lr_scheduler_type": _schedule,
    "optim": _optimizer,
    "per_device_train_batch_size": _batch,
    "fp16": _precision,
    "model_init_kwargs": _model,
    "warmup_steps": warmup,
    "warmup_ratio": warmup_ratio,
    "save_steps": checkpoints,
    "logging_steps": logging,
    "max_steps": lambda value, settings: {"trainer.max_steps": value, "trainer.max_epochs": -1} if value > 0 else {},
    "num_train_epochs": _epochs,
    "precompute_ref_log_probs": lambda value, settings: {"model.reference_store": True} if value else {},
    "torch_compile": lambda value, settings: (
        {"model.policy.compile": settings.get("torch_compile_backend") or "inductor"} if value else {}
    ),
    "report_to": lambda value, settings: {"trainer.logger": False} if value in ("none", ["none"]) else {},
    "disable_tqdm": lambda value, settings: {"trainer.enable_progress_bar": not value},
    "use_cpu": lambda value, settings: {"trainer.accelerator": "cpu"} if value else {},
    "eval_strategy": lambda value, settings: validation(settings),
    "eval_steps": lambda value, settings: validation(settings) if settings["eval_strategy"] == "steps" else {},
}
"""Settings whose value or name changes, with what they become."""

READ_WITH_OTHERS = (
    *("adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "bf16", "lr_scheduler_kwargs"),
    *("save_total_limit", "torch_compile_backend"),
)
"""Settings that are read together with another one."""


def _nested(options: Options) -> dict[str, Any]:
    """Options by dotted names as nested mappings; arguments of a class stand under its init_args."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
            if "class_path" in node:
                node = node.setdefault("init_args", {})
        node[last] = value
    order = ("run_dir", "ckpt_path", "seed_everything", "model", "data", "trainer")
    return {name: tree[name] for name in order if name in tree}
