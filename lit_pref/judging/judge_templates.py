"""Templates of the question to a judge: text files with fields in braces, which a user can replace."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean

PAIRWISE = ("prompt", "response_a", "response_b")
"""The fields that a template for comparing two responses needs."""
GRADING = ("prompt", "response")
"""The fields that a template for grading one response needs."""
REFERENCE = "reference"
"""The field of a reference answer, which every template may have."""
SHIPPED = Path(__file__).with_name("templates")
_FIELD = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A text with fields such as `{prompt}`; `{{prompt}}` is the literal `{prompt}`, and other braces are text.

    >>> Template("mine.txt", "{prompt} {{prompt}} {a: 1}").fill({"prompt": "{x}"})
    '{x} {prompt} {a: 1}'
    """

    path: str
    text: str

    @property
    def fields(self) -> list[str]:
        """The names of the fields, in their order, each once."""
        return list(dict.fromkeys(match[2] for match in _FIELD.finditer(self.text) if match[2]))

    @property
    def digest(self) -> str:
        """16 characters that identify the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def fill(self, texts: dict[str, str]) -> str:
        """Return the text with its fields filled in; what a field holds is never read as a field."""
        return _FIELD.sub(lambda match: texts[match[2]] if match[2] else f"{{{match[1]}}}", self.text)


def read_template(path: Path | None, needed: tuple[str, ...], reference: bool) -> Template:
    """Read a template, or the shipped one.

    Args:
        path: a text file; None: the shipped template.
        needed: the fields that it must have, `PAIRWISE` or `GRADING`.
        reference: whether there are reference answers, which the template must then show, and else must not.

    Raises:
        UsageError: the file cannot be read, lacks a field, or has an unknown one.
    """
    shipped = ("pairwise" if needed == PAIRWISE else "grading") + ("_reference" if reference else "") + ".txt"
    path = SHIPPED / shipped if path is None else path
    try:
        template = Template(str(path), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--template {path} cannot be read as a text file ({error})") from error
    known = [*needed, REFERENCE] if reference else list(needed)
    for field in template.fields:
        if field == REFERENCE and not reference:
            raise UsageError(
                f"{path} shows a {{reference}}; name the column of the reference answers by --reference_text COLUMN, "
                "or take the field out"
            )
        if field not in known:
            raise UsageError(
                f"{path} has the unknown field {{{field}}}{did_you_mean(field, known) or '.'} The fields here are "
                f"{_listed(known)}; a literal {{{field}}} is written {{{{{field}}}}}"
            )
    if missing := [field for field in known if field not in template.fields]:
        raise UsageError(
            f"{path} lacks the field {_listed(missing)}, so the judge would not see it; the fields here are "
            f"{_listed(known)}"
        )
    return template


def _listed(fields: list[str]) -> str:
    return ", ".join(f"{{{field}}}" for field in fields)
