"""Describes a mapping in words, for the first lines of a run and for reports."""

from lit_pref.data.formats.spec import SIDES, RowMapping


def describe(mapping: RowMapping, one_sided: bool = False) -> str:
    """Return one line that names the columns of texts and strength; if `one_sided`, of the chosen text alone."""
    sides = [getattr(mapping, side) for side in SIDES.get(mapping.kind, ()) if getattr(mapping, side) is not None]
    texts = mapping.responses or " and ".join(sides)
    prompt = (
        f"prompt {' and '.join([mapping.prompt, *mapping.prompt_then])}" if mapping.prompt else "prompt within them"
    )
    if one_sided and mapping.kind in ("pair", "none"):
        return f"format {mapping.name}: text {sides[0]}, {prompt}" + (f" ({mapping.note})" if mapping.note else "")
    sentence = f"format {mapping.name}: texts {texts}, {prompt}, {strength_in_words(mapping)}"
    return f"{sentence} ({mapping.note})" if mapping.note else sentence


def strength_in_words(mapping: RowMapping) -> str:
    """Return how the margin is computed."""
    transform = mapping.margin.transform
    words = "strength from margin, scores or probability, if the rows have any"
    if mapping.kind == "none":
        words = "no strength"
    elif (score := mapping.score) is not None:
        first, second = (score.chosen or score.a, score.rejected or score.b) if not score.path else (score.path, "")
        between = f"{first} and {second}" if second else f"two {first}"
        words = f"margin {transform or 'diff'} of {between}"
    elif mapping.signed is not None:
        words = f"margin {mapping.signed.column}, positive for {mapping.signed.positive_means}"
    elif mapping.probability is not None:
        margin = "margin the log-odds of " if transform else ""
        words = f"{margin}probability {mapping.probability.column} of {mapping.probability.of or 'chosen'}"
    elif mapping.label is not None:
        words = f"label {mapping.label.column} ({mapping.label.a!r} is a, {mapping.label.b!r} is b)"
    words += f", times {mapping.margin.scale:g}" if mapping.margin.scale != 1 else ""
    return words + (f", cut to {mapping.margin.clip:g}" if mapping.margin.clip is not None else "")
