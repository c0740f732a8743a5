"""Chat templates that do not end, or take up the memory, are stopped with a sentence."""

import resource
import signal
import time

import pytest

import lit_pref.models.template_limits as limits
from lit_pref.errors import UserError
from lit_pref.models.chat import Chat
from lit_pref.models.special_text import SpecialNames
from lit_pref.models.template_limits import limited_rendering

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
LARGE = (
    "{% set s = namespace(t='"
    + "x" * 1024
    + "') %}{% for a in range(22) %}{% set s.t = s.t + s.t %}{% endfor %}{{ s.t }}"
)
FOLDED = "{{ 'x' * 9999999999 }}"  # computed by jinja when it compiles the template
FILTER = "{{ messages[0].content | center(9999999999) }}"


class Rendering:
    """A tokenizer as far as rendering asks it."""

    name_or_path = "somewhere/model"

    def __init__(self, template: str) -> None:
        self.template = template

    def get_chat_template(self) -> str:
        return self.template

    def apply_chat_template(self, turns: list, **_: object) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        return render_jinja_template(conversations=[turns], chat_template=self.template)[0][0]


def render(template: str) -> str:
    names = SpecialNames.__new__(SpecialNames)
    return Chat(Rendering(template), names, plain=False).render_prompt([{"role": "user", "content": "hello"}]).text


@pytest.mark.parametrize(
    "template, limit", [(ENDLESS, "0.5 seconds"), (LARGE, "1 GiB"), (FOLDED, "1 GiB"), (FILTER, "1 GiB")]
)
def test_a_template_beyond_the_limits_is_stopped(monkeypatch: pytest.MonkeyPatch, template: str, limit: str):
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    monkeypatch.setattr(limits, "MEMORY", 2**30)
    before = signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match=rf"template of somewhere/model was stopped, .* more than {limit}.*: fix or"):
        render(template)
    assert (signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert render("{{ messages[0].content }}") == "hello"


def test_the_limits_cost_less_than_a_tenth_of_a_millisecond():
    def once() -> float:
        start = time.process_time()
        for _ in range(1000):
            with limited_rendering("x"):
                pass
        return time.process_time() - start

    assert min(once() for _ in range(3)) < 0.1
