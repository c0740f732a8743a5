"""Describes a mapping in words, for the first lines of a run and for reports."""

from lit_pref.data.formats.several import Columns, Label, listed
from lit_pref.data.formats.spec import SIDES, RowMapping
from lit_pref.data.formats.strength import Transform


def describe(mapping: RowMapping, one_sided: bool = False, lists: bool = False) -> str:
    """Return one line that names the columns of texts and strength.

    Args:
        mapping: the mapping.
        one_sided: name the chosen text alone.
        lists: lists are kept whole, with a label for each response.
    """
    sides = [getattr(mapping, side) for side in SIDES.get(mapping.kind, ()) if getattr(mapping, side) is not None]
    texts = mapping.responses or " and ".join(sides)
    prompt = (
        f"prompt {' and '.join([mapping.prompt, *mapping.prompt_then])}" if mapping.prompt else "prompt within them"
    )
    if one_sided and mapping.kind in ("pair", "none"):
        return f"format {mapping.name}: text {sides[0]}, {prompt}" + (f" ({mapping.note})" if mapping.note else "")
    if lists:
        sentence = f"format {mapping.name}: whole lists of {texts}, {prompt}, {_labels_in_words(mapping)}"
    else:
        sentence = f"format {mapping.name}: texts {texts}, {prompt}, {strength_in_words(mapping)}"
    return f"{sentence} ({mapping.note})" if mapping.note else sentence


def _labels_in_words(mapping: RowMapping) -> str:
    """Return how the label of a response is computed from its score."""
    words = f"labels {'-' if mapping.ascending else ''}{mapping.score.path if mapping.score else ''}"
    words += " as logarithms" if mapping.margin.transform == "log_ratio" else ""
    return words + (f", times {mapping.margin.scale:g}" if mapping.margin.scale != 1 else "")


def strength_in_words(mapping: RowMapping) -> str:
    """Return how the margin is computed."""
    transform = mapping.margin.transform
    words = "strength from margin, scores or probability, if the rows have any"
    if mapping.kind == "none":
        words = "no strength"
    elif (score := mapping.score) is not None:
        sides = (score.path, None) if score.path else (score.chosen or score.a, score.rejected or score.b)
        first, second = map(_named, sides)
        between = f"{first} and {second}" if second else f"two {first}"
        words = f"margin {transform or 'diff'} of {between}"
    elif mapping.signed is not None:
        words = f"margin {_named(mapping.signed.column)}, positive for {mapping.signed.positive_means}"
    elif mapping.probability is not None:
        margin = "margin the log-odds of " if transform else ""
        words = f"{margin}probability {_named(mapping.probability.column)} of {mapping.probability.of or 'chosen'}"
    elif mapping.label is not None:
        words = _label_in_words(mapping.label, transform)
    words += f", times {mapping.margin.scale:g}" if mapping.margin.scale != 1 else ""
    return words + (f", cut to {mapping.margin.clip:g}" if mapping.margin.clip is not None else "")


def _named(columns: Columns | None) -> str:
    """Return a column, or the mean of several."""
    several = isinstance(columns, list) or "[]" in (columns or "")
    return f"the mean of {' and '.join(listed(columns))}" if several else str(columns or "")


def _label_in_words(label: Label, transform: Transform | None) -> str:
    meanings = f"({label.a!r} is a, {label.b!r} is b)"
    if not isinstance(label.column, list) and "[]" not in label.column:
        return f"label {label.column} {meanings}"
    votes = f"{label.votes} of the votes {' and '.join(listed(label.column))} {meanings}"
    margin = {"probability": "margin the log-odds of the ", "votes": "margin and probability the "}
    return margin.get(transform or "", "") + votes + (f", smoothed by {label.smoothing:g}" if label.smoothing else "")
