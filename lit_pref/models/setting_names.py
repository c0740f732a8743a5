"""The names of dtypes and attention implementations; unknown ones are refused with the nearest known one."""

import torch
from transformers.modeling_utils import AttentionInterface

from lit_pref.errors import UsageError
from lit_pref.hints import nearest_names
from lit_pref.scoring.products import HeadPrecision

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
HEADS = ("lm", "scalar")
PRECISIONS = tuple(precision.value for precision in HeadPrecision)
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp64": "float64"}
_SHORT |= {"f32": "float32", "single": "float32", "double": "float64", "32": "float32", "16": "float16"}


def refuse_unknown_dtype(name: str) -> None:
    """Refuse a dtype that is none of `DTYPES`.

    Raises:
        UsageError: it is none of them.
    """
    if name not in DTYPES:
        short = name.lower().removeprefix("torch.")
        meant = _SHORT.get(short, short if short in DTYPES else None)
        guess = f"; did you mean {meant}?" if meant else ""
        raise UsageError(f"dtype '{name}' is unknown: use one of {', '.join(DTYPES)}{guess}")


def refuse_unknown_attention(name: str, owner: str = "policy.") -> None:
    """Refuse an attention implementation that transformers does not know; kernels of the hub have a / in their names.

    Args:
        name: the implementation.
        owner: the beginning of the setting's name in the message.

    Raises:
        UsageError: it does not know it.
    """
    known = ["eager", *AttentionInterface().valid_keys()]
    if "/" in name or name in known:
        return
    near = nearest_names(name, known, cutoff=0.4)
    guess = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(
        f"{owner}attention '{name}' is unknown: transformers has {', '.join(known)}{guess}; null is the model's own"
    )


def refuse_unknown_head(name: str) -> None:
    """Refuse a head that is none of `HEADS`.

    Raises:
        UsageError: it is none of them.
    """
    if name not in HEADS:
        raise UsageError(f"policy.head is {name!r}: it must be one of {', '.join(HEADS)}")


def refuse_head_precision(name: str, head: str, owner: str = "policy.") -> None:
    """Refuse a precision of the head that is none of `PRECISIONS`, or one for a scalar head.

    Args:
        name: the precision.
        head: one of `HEADS`.
        owner: the beginning of the setting's name in the message.

    Raises:
        UsageError: it is none of them, or `head` is not `lm`.
    """
    if name not in PRECISIONS:
        near = nearest_names(name, PRECISIONS, cutoff=0.4)
        meant = {"float32": "fp32", "bfloat16": "bf16"}.get(name.lower(), near[0] if near else None)
        guess = f"; did you mean {meant}?" if meant else ""
        raise UsageError(f"{owner}head_precision is {name!r}: it must be one of {', '.join(PRECISIONS)}{guess}")
    if head != "lm" and name != HeadPrecision.AUTO:
        raise UsageError(
            f"{owner}head_precision is {name!r}, and a {head} head is always multiplied in fp32, which costs nothing: "
            "leave it out"
        )


def refuse_settings_of_reference(name: str, attention: str | None, head_precision: str) -> None:
    """Refuse unknown names in the settings of a reference, which are those of a policy, under the reference's name.

    Args:
        name: the class of the reference.
        attention: its `attention`.
        head_precision: its `head_precision`.

    Raises:
        UsageError: one is unknown.
    """
    if attention is not None:
        refuse_unknown_attention(attention, owner=f"{name}: ")
    refuse_head_precision(head_precision, "lm", owner=f"{name}: ")
