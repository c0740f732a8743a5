"""Writes docs/objectives.md and its figure: every objective by family, from the docstrings of the classes."""

import inspect
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_pref import describing
from lit_pref.objectives.base import Objective
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import Link
from lit_pref.porting.losses import trl_names

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURE = DOCS / "objectives.md", DOCS / "objectives.png"
HEAD = """# Objectives

Written by `make docs` from the docstrings. `python -m lit_pref objectives` lists the same in a terminal and filters it
(`--needs margin`, `--reference_free`, `--trl`), and `objectives NAME` prints one with YAML to copy.
[methods.md](methods.md) lists the parts that most of them are made of, and which of these can be combined;
[from_trl.md](from_trl.md) is for those who come from TRL, and [own_parts.md](own_parts.md) for a part of one's own.

l_y is the summed log-prob of a response, h_y = log pi(y | x) - log pi_ref(y | x), the index w means the chosen response
and l the rejected one; n is a number of tokens, m the margin, p a probability, x the logit, and beta is in reward units
per nat.
"""
CHOOSING = """## Which one?

| you have | try first |
|---|---|
| pairs, and nothing else known of them | `DPO` |
| margins: how much better the chosen response is | `MMPO` |
| labels of which a share is wrong | see *noisy labels* |
| no memory for a reference | see *reference-free* |
| several models that could be the reference | `MRPO`, and `DPO` on each alone |
| a reference that should follow the policy (TR-DPO) | `DPO` with `MovingReference`: `configs/trdpo.yaml` |
| a loss for each response instead of for their difference | see *single responses and batches* |
| lists of more than two responses | see *lists* |

[Experiment 015](../experiments/015_all_methods/README.md) trains 44 of them at one budget where the true reward is
known, and [claims.md](claims.md) puts what papers say of theirs to the test.

Two methods are left out because their formulas could not be read: DPO-PoP (arXiv 2509.22851) and xi-DPO (arXiv
2605.10981).
"""
DRAWN = """## Loss and gradient against the logit

Each link at its defaults with the target 1 (a soft one, 0.9, where it needs one); the gradient is that by the logit.
Links that divide by beta squared are drawn times beta squared.

![loss and gradient of each link](objectives.png)
"""


def page() -> str:
    """Return the text of the page."""
    known = list(describing.objectives().values())
    parts = [HEAD.rstrip(), _contents(known), CHOOSING.rstrip(), DRAWN.rstrip()]
    for family, members in groupby(known, key=lambda cls: cls.family):
        parts += [f"## {family[0].upper()}{family[1:]}", *map(_entry, members)]
    return "\n\n".join(parts) + "\n"


def _contents(known: list[type[Objective]]) -> str:
    lines = ["| family | objectives |", "|---|---|"]
    for family, members in groupby(known, key=lambda cls: cls.family):
        links = ", ".join(f"[`{cls.__name__}`](#{cls.__name__.lower()})" for cls in members)
        lines.append(f"| {family} | {links} |")
    return "\n".join(lines)


def _entry(cls: type[Objective]) -> str:
    about = describing.docstring(cls)
    needs = describing.needs_in_words(cls) or "pairs alone"
    open_parts = ", ".join(f"`{part}`" for part in describing.open_parts(cls))
    names = ", ".join(f"`{name}`" for name in trl_names(cls.__name__))
    facts = [f"Needs {needs}.", f"Faithfulness: {describing.CHECKED[cls.faithfulness]}."]
    facts += [f"TRL's {names}."] if names else []
    facts += [f"Code: `{describing.file_of(cls)}`."]
    blocks = [f"### {cls.__name__}", about.body, f"**When**: {about.when}", f"**Source**: {about.source}"]
    blocks += [" ".join(facts), _arguments(cls), f"Parts to choose: {open_parts}." if open_parts else ""]
    return "\n\n".join(block for block in blocks if block)


def _arguments(cls: type) -> str:
    rows = []
    for argument in describing.arguments(cls):
        required = argument.default is inspect.Parameter.empty
        default = "required" if required else f"`{_shown(argument.default)}`"
        meaning = argument.meaning.replace("|", "\\|")
        rows.append(f"| `{argument.name}` | {default} | {meaning} |")
    return "\n".join(["| argument | default | meaning |", "|---|---|---|", *rows]) if rows else ""


def _shown(default: Any) -> str:
    return yaml.safe_dump(default, default_flow_style=True).removesuffix("\n...\n").strip()


def curves() -> dict[str, tuple[list[float], list[float], list[float]]]:
    """Return logit, loss and gradient of each link, by its name."""
    found = {}
    for cls in describing.subclasses(Link):
        link = cls(**describing.required_arguments(cls))
        logits = torch.linspace(-4, 4, 161, dtype=torch.float64, requires_grad=True)
        target = torch.full_like(logits, 0.9 if link.soft_targets_only else 1.0)
        beta = torch.full_like(logits, Pairwise().beta)
        losses = link(logits, target, beta)
        if cls.constant_beta_only:
            losses = losses * beta**2
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        found[cls.__name__] = (logits.tolist(), losses.tolist(), gradient.tolist())
    return found


def draw(path: Path) -> None:
    """Draw the curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, (logits, losses, gradient) in curves().items():
        left.plot(logits, losses, label=name)
        right.plot(logits, gradient, label=name)
    for axes, title in ((left, "loss"), (right, "gradient by the logit")):
        axes.set(title=title, xlabel="logit x")
        axes.axvline(0, color="grey", linewidth=0.5)
        axes.axhline(0, color="grey", linewidth=0.5)
    left.set_ylim(-0.2, 5)
    right.set_ylim(-2.5, 1)
    right.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    if "--check" in sys.argv:
        text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        current = text == page() and FIGURE.exists()
        sys.exit(0 if current else "docs/objectives.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
    draw(FIGURE)
