"""Validates mappings, with a message for missing or contradictory keys."""

from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.spec import SIDES, RowMapping
from lit_pref.data.formats.strength import OF_SCORES
from lit_pref.errors import UsageError

SINGLE = ("prompt", "system", "a", "b", "group", "extra_response", "id")


def problem_of(mapping: RowMapping) -> str | None:
    """Return the first problem of a mapping, named by its key, or None if the mapping can be used."""
    for check in (_kind, _strength, _sides, _label, _margin, _bounds, _paths):
        if problem := check(mapping):
            return problem
    return None


def _kind(mapping: RowMapping) -> str | None:
    kind = mapping.kind
    needed = ("chosen",) if kind in ("pair", "none") else ("prompt", *SIDES.get(kind, ("responses",)))
    for key in ("responses",) if mapping.tree else needed:
        if getattr(mapping, key) is None:
            return f"kind {kind} needs `{key}`, the path to it in a row"
    if mapping.prompt_then and mapping.prompt is None:
        return "`prompt_then` follows a `prompt`, the path to its first text"
    if (mapping.tree or mapping.group) and kind != "list":
        return "`tree` and `group` are for kind list"
    return None


def _strength(mapping: RowMapping) -> str | None:
    """Check that the mapping names the strength that its kind needs."""
    kind, score = mapping.kind, mapping.score
    if kind == "none" and (score or mapping.signed or mapping.probability or mapping.label):
        return "kind none has no strength; remove the columns of strength, or set kind to pair"
    if kind == "list" and (score is None or score.path is None):
        return "kind list needs `score.path`, one score or rank for each of `responses`"
    if kind == "list" and (mapping.signed or mapping.probability or mapping.label):
        return "kind list takes its strength from `score` alone"
    if kind == "ab_signed" and mapping.signed is None:
        return "kind ab_signed needs `signed`, the column whose sign says which text is better"
    if kind == "ab" and not (score or mapping.signed or mapping.label or mapping.probability):
        return "kind ab needs `score`, `label` or `probability`, which say which text is better"
    if score and mapping.signed:
        return "`score` and `signed` both define the margin; give one of them"
    return None


def _sides(mapping: RowMapping) -> str | None:
    """Check that the strength refers to texts that the kind has."""
    sides = SIDES.get(mapping.kind, ())
    score, signed, probability = mapping.score, mapping.signed, mapping.probability
    parts = {"score": score, "signed": signed, "probability": probability}
    if score and sides and None in (getattr(score, side) for side in sides):
        return f"`score` needs {' and '.join(f'`{side}`' for side in sides)}"
    if signed and signed.positive_means == "label" and mapping.label is None:
        return "`signed.positive_means: label` needs a `label`"
    if signed and signed.positive_means not in (*sides, "label"):
        return f"`signed.positive_means` must be one of {', '.join(sides)}, label"
    if probability and probability.of not in (None, *sides):
        return f"`probability.of` must be one of {', '.join(sides)}"
    if probability and mapping.kind in ("ab", "ab_signed") and probability.of is None:
        return "`probability.of` must name the text whose probability it is, a or b"
    limits = {name: part.range for name, part in parts.items() if part is not None and part.range is not None}
    for name, limit in limits.items():
        if len(limit) != 2 or limit[0] >= limit[1]:
            return f"`{name}.range` must be two numbers, the smaller first"
    return None


def _label(mapping: RowMapping) -> str | None:
    if mapping.label is None:
        return None
    label = mapping.label
    several = isinstance(label.column, list) or "[]" in label.column
    if not several and (label.votes != "majority" or label.smoothing):
        return "`label.votes` and `label.smoothing` are for several annotators: a list of columns, or a path to many"
    if label.smoothing < 0 or (label.smoothing and label.votes != "share"):
        return f"`label.smoothing` is {label.smoothing:g}; it must be 0 or more, and is for `votes: share`"
    if label.votes == "share" and mapping.probability:
        return "`probability` and `label.votes: share` both define the probability; give one of them"
    sides = [label.a, label.b, label.tie]
    values = [value for part in sides for value in (part if isinstance(part, list) else [part])]
    if any(isinstance(value, list | dict) for value in values):
        return "`label` takes a word or a number for each side, or a list of them"
    if len({(type(value) is bool, value) for value in values}) < len(values):
        return "`label` gives one value two meanings"
    return None


def _margin(mapping: RowMapping) -> str | None:
    transform, score = mapping.margin.transform, mapping.score
    if mapping.margin.scale <= 0:
        scale = f"{mapping.margin.scale:g}"
        return f"`margin.scale` is {scale}; it must be above 0, because other keys say which text is better"
    share = (mapping.label is not None and mapping.label.votes == "share") or None
    has = {"scores": score, "signed": mapping.signed, "probability": mapping.probability or share, "votes": share}
    wanted = "scores" if transform in OF_SCORES else transform
    if transform == "const" or transform is None or (mapping.kind == "pair" and not mapping.has_strength):
        wanted = None
    if wanted and has[wanted] is None:
        named = {"scores": "score", "votes": "label.votes: share"}.get(wanted, wanted)
        return f"`margin.transform: {transform}` needs `{named}`"
    if wanted in ("probability", "votes") and (score or mapping.signed):
        return f"`margin.transform: {wanted}` does not go with `score` or `signed`"
    if score and transform in ("signed", "probability", "votes"):
        return f"`margin.transform: {transform}` does not go with `score`"
    if score and score.order == "asc" and transform == "log_ratio":
        return "`margin.transform: log_ratio` needs scores where the larger one is better, but `score.order` is asc"
    if score and score.order == "desc" and transform == "rank_gap":
        return "`margin.transform: rank_gap` needs ranks where the smaller one is better, but `score.order` is desc"
    return None


def _bounds(mapping: RowMapping) -> str | None:
    if mapping.margin.clip is not None and mapping.margin.clip <= 0:
        return f"`margin.clip` is {mapping.margin.clip:g}; it must be above 0"
    for key in ("pairs_from_list", "filters"):
        cap = getattr(mapping, key).max_pairs_per_prompt
        if cap is not None and cap < 1:
            return f"`{key}.max_pairs_per_prompt` is {cap}; it must be 1 or more"
    return None


def _paths(mapping: RowMapping) -> str | None:
    for key in (
        "score.chosen",
        "score.rejected",
        "score.a",
        "score.b",
        "signed.column",
        "probability.column",
        "label.column",
    ):
        part, _, name = key.partition(".")
        if getattr(getattr(mapping, part), name, None) == []:
            return f"`{key}` names no column"
    for key, path in mapping.paths.items():
        try:
            many = ValuePath(path).many
        except UsageError as error:
            return f"`{key}`: {str(error).rstrip('.')}"
        if (key in SINGLE or key.startswith("prompt_then.")) and many:
            return f"`{key}` is {path}, which leads to many values; it must lead to one"
        if key in ("responses", "score.path") and many == bool(mapping.group or mapping.tree):
            return f"`{key}` is {path}; it must lead to " + (
                "one value per row" if many else "many, as a[] or a[].b do"
            )
    sides = ("path",) if mapping.kind == "list" else SIDES[mapping.kind]
    for key in ("source", "columns", "spans"):
        whole = getattr(mapping, key)
        for name, where in {key: whole}.items() if key == "source" else whole.items():
            if isinstance(where, dict) and where and set(where) != set(sides):
                return f"`{key}{'' if key == 'source' else '.' + name}` needs {' and '.join(f'`{s}`' for s in sides)}"
    return None
