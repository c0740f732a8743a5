"""Writes docs/from_trl.md: each loss and each argument of TRL's trainers of pairs, with its place here."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from lit_pref.hints import advice, our_option
from lit_pref.other_names import EXPLAINED
from lit_pref.porting.configuration import READ_WITH_OTHERS
from lit_pref.porting.losses import LOSSES, Loss
from lit_pref.porting.objective import OF_LOSS

PAGE = Path(__file__).parents[1] / "docs" / "from_trl.md"
HEAD = """# From TRL

Written by `make docs` from `lit_pref/porting/` and `lit_pref/other_names.py`; tests compare both with TRL itself.

```bash
python -m lit_pref objectives --from_trl 'loss_type=ipo,beta=0.1'
python -m lit_pref objectives --from_trl 'CPOConfig(loss_type="simpo", cpo_alpha=0.0)' > run.yaml
python -m lit_pref objectives --from_trl arguments.yaml
python -m lit_pref fit --config run.yaml --model.policy.path FOLDER --data.train pairs.jsonl
```

The first three print the configuration of a run: the objective, and optimizer, schedule, batch, precision and lengths
with TRL's defaults where nothing else is given. Arguments without a place are named in comments, with what to do
instead. `trainer=cpo`, `orpo` or `reward` among the arguments names another trainer than DPO's.

TRL's columns `prompt`, `chosen` and `rejected` are read as they are, conversations too ([formats.md](formats.md)). What
differs most: `data.global_batch` counts the pairs of an optimizer step over all devices, and a step takes the mean over
its pairs, whatever the micro-batches are; a share of the prompts is held out by default (`data.val_fraction`); and
`python -m lit_pref check` finds faults in data and models before a run.
"""
LOSSES_HEAD = """## Losses

`tests/test_trl_losses.py` computes each of them by TRL's own code and by the objective here, and compares values and
gradients. Where the last column is empty they agree to rounding. In the column "with", the value of an argument is the
name of TRL's setting; `target`, `score` and `terms` are left out where that setting is 0.

| trainer | `loss_type` | here | with | settings it reads | where they differ |
|---|---|---|---|---|---|"""
PARTS = """Further settings of DPO are parts, with every loss that leaves them open: `f_divergence_type` is `score`
(`ForwardKL`, `JensenShannon`, `AlphaDivergence` with alpha = 1 - `f_alpha_divergence_coef`), `ld_alpha` is `tokens:
TailWeighted`, and `use_weighting` is `weight: OnPolicyWeight`. For `ipo` and `sigmoid_norm` the first two have no
counterpart: TRL divides by the length after the divergence and after LD-DPO's weights, here that is done before. A list
of `loss_type` with `loss_weights` is `Weighted`, and `sync_ref_model` is the reference `MovingReference`."""

SCRIPTS = """A YAML file of `trl dpo --config` has these too, and `--from_trl FILE` carries them over. Adapters are
read if `use_peft` is set, with TRL's defaults; peft then chooses layers by the architecture, where here all linear
layers get an adapter unless `lora_target_modules` names some."""


def page() -> str:
    """Return the text of the page."""
    rows = [row(loss) for loss in LOSSES]
    parts = [HEAD.rstrip(), "\n".join([LOSSES_HEAD, *rows]), PARTS, "## Arguments"]
    shared: dict[str, dict[str, Any]] = configurations()
    everywhere = set.intersection(*(set(fields) for fields in shared.values()))
    for title, names in [
        *((name, [field for field in fields if field not in everywhere]) for name, fields in shared.items()),
        ("All of them", [field for field in shared["DPOConfig"] if field in everywhere]),
    ]:
        table = "\n".join(["| argument | here |", "|---|---|", *(f"| `{name}` | {place(name)} |" for name in names)])
        parts += [f"### {title}", table]
    table = "\n".join(["| argument | here |", "|---|---|", *(f"| `{name}` | {place(name)} |" for name in of_scripts())])
    parts += ["### TRL's scripts (ModelConfig and ScriptArguments)", SCRIPTS, table]
    return "\n\n".join(parts) + "\n"


def configurations() -> dict[str, dict[str, Any]]:
    """Return the fields of the installed TRL's configurations."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import DPOConfig, RewardConfig
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    classes = (DPOConfig, CPOConfig, ORPOConfig, RewardConfig)
    return {cls.__name__: {field.name: field for field in dataclasses.fields(cls)} for cls in classes}


def of_scripts() -> list[str]:
    """Return the arguments of TRL's scripts that belong to no trainer."""
    from trl import ModelConfig, ScriptArguments

    return [field.name for cls in (ModelConfig, ScriptArguments) for field in dataclasses.fields(cls)]


def place(name: str) -> str:
    """Return where an argument of TRL has its place; empty if that is unknown."""
    if option := our_option(name):
        also = "; read together with others" if name in READ_WITH_OTHERS else ""
        more = f": {EXPLAINED[option]}" if option in EXPLAINED else ""
        return f"`{option}`{more}{also}".replace("|", "\\|")
    return advice(name).removeprefix("; ").replace("|", "\\|")


def row(loss: Loss) -> str:
    """Return the row of a loss in the table; its arguments have the names of TRL's settings as values."""
    arguments = loss.arguments({name: name for name in OF_LOSS})
    given = yaml.safe_dump(arguments, default_flow_style=True, sort_keys=False, width=1000).strip()[1:-1]
    reads = ", ".join(f"`{name}`" for name in (*(["beta"] if "beta" in arguments.values() else []), *loss.reads))
    name = f"`{loss.name}`" if loss.name else "-"
    shown = f"`{given}`" if given else ""
    return f"| {loss.title.split()[0]} | {name} | `{loss.objective}` | {shown} | {reads} | {loss.difference} |"


if __name__ == "__main__":
    if "--check" in sys.argv:
        text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        sys.exit(0 if text == page() else "docs/from_trl.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
