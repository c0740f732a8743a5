"""Facts about objectives, read from their classes: docstrings, requirements in words, arguments, open parts."""

import inspect
import re
import typing
from typing import Any, NamedTuple

from lit_pref.objectives.base import Family, Objective
from lit_pref.objectives.component import Component
from lit_pref.objectives.pairwise import PARTS, Pairwise
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import COMPARING_NEEDS, TokenLogps, TokenRewards

FAMILIES: tuple[str, ...] = typing.get_args(Family)
"""The families in the order of the list of objectives."""

CHECKED = {
    "code": "checked against the authors' code",
    "derived": "derived from the equations",
    "reconstruction": "a reconstruction",
}
"""How a method was checked, in words, by `Objective.faithfulness`."""

NEEDS = {
    "reference": "a reference",
    "references": "several references",
    "live_reference": "a reference in memory, with the policy's vocabulary",
    "margin": "margins",
    "probability": "probabilities",
    "column": "columns",
    "token_column": "token columns",
    "extra_response": "an extra response",
    "token_logps": "log-probs of tokens",
    "lists": "lists of responses",
    "reward_model": "a reward model",
}
"""The words of `objectives --needs`, with their meaning."""

Described = typing.TypeVar("Described", bound=Component)

PLACEHOLDER = "example"
"""The name that `required_arguments` gives a column."""


class Docstring(NamedTuple):
    """The sections of a class's docstring; a missing one is empty.

    `body` is everything from the summary to the first marked paragraph, the equation (indented in it) included.
    """

    summary: str
    body: str
    equation: str
    when: str
    source: str
    arguments: dict[str, str]


def docstring(cls: type) -> Docstring:
    """Return the docstring of a class by sections.

    >>> docstring(Objective).summary
    'A loss for each pair, from the scores of the policy and of K references.'
    """
    text = inspect.getdoc(cls) or ""
    head, *sections = re.split(r"^(Args|Raises|Returns|Shapes):", text, flags=re.MULTILINE)
    named = dict(zip(sections[::2], sections[1::2], strict=True))
    paragraphs = [paragraph for paragraph in head.strip().split("\n\n") if not paragraph.startswith(">>> ")]
    marked = {key: _marked(paragraphs, key) for key in ("When", "Source")}
    body = [paragraph for paragraph in paragraphs if not re.match(r"\*\*\w+\*\*", paragraph)]
    equation = [inspect.cleandoc(paragraph) for paragraph in body if paragraph.startswith("    ")]
    return Docstring(
        _one_line(body[0].partition("**")[0]) if body else "",
        "\n\n".join(body),
        "\n".join(equation),
        marked["When"],
        marked["Source"],
        _arguments(named.get("Args", "")),
    )


def _marked(paragraphs: list[str], key: str) -> str:
    """The paragraph that begins with **key**, and the unmarked text that follows the mark within a line."""
    for paragraph in paragraphs:
        if found := re.search(rf"\*\*{key}\*\*:?\s*(.*)", paragraph, flags=re.DOTALL):
            return _one_line(found[1])
    return ""


def _arguments(section: str) -> dict[str, str]:
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    return {name: _one_line(text) for name, text in entries}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def file_of(cls: type) -> str:
    """Return the file that defines a class of the package, relative to the folder that holds the package.

    >>> from lit_pref.objectives.mmpo import MMPO
    >>> file_of(MMPO)
    'lit_pref/objectives/mmpo.py'
    """
    return f"{cls.__module__.replace('.', '/')}.py"


def objectives() -> dict[str, type[Objective]]:
    """Return the package's objectives by name, grouped by family in the order of `FAMILIES`.

    >>> list(objectives())[0]
    'DPO'
    """
    found: list[type[Objective]] = subclasses(Objective)
    found.sort(key=lambda cls: (FAMILIES.index(cls.family), cls.__name__))
    return {cls.__name__: cls for cls in found}


def subclasses(base: type) -> list[type[Any]]:
    """Return the concrete subclasses of `base` in the package, by name."""
    ours = [cls for cls in _below(base) if cls.__module__.startswith("lit_pref.") and not inspect.isabstract(cls)]
    return sorted(ours, key=lambda cls: cls.__name__)


def _below(cls: type[Any]) -> set[type[Any]]:
    return {below for child in cls.__subclasses__() for below in (child, *_below(child))}


def required_arguments(cls: type[Any]) -> dict[str, Any]:
    """Return a value of the right type for every constructor argument of `cls` that has no default.

    Raises:
        TypeError: an argument of another type than number, truth value, name, list of numbers or numbers by name.
    """
    values: dict[Any, Any] = {bool: True, int: 1, float: 0.5, str: PLACEHOLDER}
    values |= {list[float]: [0.5], list[str]: [PLACEHOLDER], dict[str, float]: {PLACEHOLDER: 0.5}}
    hints = typing.get_type_hints(cls.__init__)
    made = {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if parameter.default is inspect.Parameter.empty and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            if hints.get(name) not in values:
                raise TypeError(f"{cls.__name__}: give the argument {name} a default")
            made[name] = values[hints[name]]
    return made


def example(cls: type[Described]) -> Described:
    """Return an objective or a part of the class with its defaults and an example of each required argument."""
    return cls(**required_arguments(cls))


def needs(cls: type[Component], asked: Requirements) -> dict[str, str]:
    """Return what an objective or a part of a class needs, by the words of `NEEDS`, in a phrase each.

    >>> from lit_pref.objectives.mmpo import MMPO
    >>> list(needs(MMPO, MMPO().requirements))
    ['reference', 'margin']
    """
    columns = asked.columns - {"margin", "probability"}
    own = {name for name in columns if PLACEHOLDER not in name}
    named = ["those that its arguments name"] if columns - own else []
    statistics = asked.statistics | asked.reference_statistics
    of_rewards = TokenRewards() in statistics or getattr(cls, "family", "") == "reward models"
    present = {
        "reference": asked.min_references == 1 and not of_rewards,
        "references": asked.min_references > 1 or (asked.max_references is None and issubclass(cls, Objective)),
        "live_reference": any(isinstance(need, COMPARING_NEEDS) for need in statistics),
        "margin": "margin" in asked.columns,
        "probability": "probability" in asked.columns,
        "column": bool(columns) and not asked.lists,
        "token_column": bool(asked.token_columns),
        "extra_response": "extra_response" in asked.sides and asked.extra_function is None,
        "token_logps": TokenLogps() in statistics,
        "lists": asked.lists,
        "reward_model": of_rewards,
    }
    phrases = {word: NEEDS[word] for word, is_present in present.items() if is_present}
    if "column" in phrases:
        phrases["column"] = f"columns: {', '.join([*sorted(own), *named])}"
    if "references" in phrases and asked.min_references == 1:
        phrases["references"] = "any number of references"
        del phrases["reference"]
    return phrases


def needs_in_words(cls: type[Component]) -> str:
    """Return what an objective or a part of a class needs, as a list within a sentence; empty if it needs pairs alone.

    >>> from lit_pref.objectives.mmpo import MMPO
    >>> needs_in_words(MMPO)
    'a reference, margins'
    """
    phrases = needs(cls, example(cls).requirements)
    if "live_reference" in phrases:  # which names the reference itself
        phrases.pop("reference", None)
    return ", ".join(phrases.values())


class Argument(NamedTuple):
    """An argument of a constructor; `default` is `inspect.Parameter.empty` if it has none."""

    name: str
    default: Any
    meaning: str


def arguments(cls: type[Any]) -> list[Argument]:
    """Return the arguments of a class with their meaning, which a class may leave to the docstring of its base.

    Without a constructor of its own a class has the arguments of its base. Parts of `Pairwise` are left out.
    """
    meanings: dict[str, str] = {}
    for base in cls.__mro__:
        meanings = {**docstring(base).arguments, **meanings}
    parts = (*PARTS, "terms") if issubclass(cls, Pairwise) else ()
    return [
        Argument(name, parameter.default, meanings.get(name, ""))
        for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name not in parts
    ]


def part_kinds() -> dict[str, list[type]]:
    """Return the classes of each part of `Pairwise`, by the part's name; the default one is the first.

    >>> [cls.__name__ for cls in part_kinds()["weight"]][0]
    'NoWeight'
    """
    built, hints = Pairwise(), typing.get_type_hints(Pairwise.__init__)
    found = {}
    for part in PARTS:
        default = type(getattr(built, part))
        members = subclasses(typing.get_args(hints[part])[0])
        found[part] = sorted(members, key=lambda cls: (cls is not default, cls.__name__))
    return {**found, "terms": subclasses(Term)}


def open_parts(cls: type[Any]) -> list[str]:
    """Return the parts of `Pairwise` that a class leaves open; a method passes a value of its own for the others.

    >>> from lit_pref.objectives.mmpo import MMPO
    >>> "target" in open_parts(MMPO), "link" in open_parts(MMPO)
    (False, True)
    """
    if not issubclass(cls, Pairwise):
        return []
    found = []
    for part in (*PARTS, "terms"):
        given: dict[str, Any] = {**required_arguments(cls), part: None}
        try:
            cls(**given)
        except TypeError:  # the constructor gives a value for it already
            continue
        found.append(part)
    return found


def papers(source: str) -> list[str]:
    """Return the arXiv ids that a **Source** names, in its order.

    >>> papers("MMPO, arXiv 2410.03145, and DPO (arXiv 2305.18290)")
    ['2410.03145', '2305.18290']
    """
    return list(dict.fromkeys(re.findall(r"\b(\d{4}\.\d{5})\b", source)))


def origin(source: str) -> str:
    """Return where a method comes from in a few words, by the first clause of its **Source**: an arXiv id, or a name.

    >>> origin("MMPO, arXiv 2410.03145, and its code")
    'arXiv 2410.03145'
    >>> origin("Burges et al., Learning to Rank using Gradient Descent, ICML 2005; soft targets, arXiv 2410.03145")
    'Burges et al. 2005'
    """
    clause = re.split(r";|(?<!al)\. ", source)[0]
    if found := papers(clause):
        return f"arXiv {found[0]}"
    year = re.search(r"\b(?:19|20)\d\d\b", clause)
    return " ".join([re.split(r"[,(:]", clause)[0].strip(), *([year[0]] if year else [])])
