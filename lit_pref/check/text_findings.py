"""Findings about the texts of a source: unread columns, text that the chat template loses, and the form of prompts."""

import re

from lit_pref.check.report import Finding, Severity
from lit_pref.data.prepared.preparation_report import PreparationReport


def unread(split: str, source: str, report: PreparationReport) -> list[Finding]:
    """The columns and the keys of messages that nothing reads: those that may hold text as a note."""
    if not report.unread:
        return []
    words = f"{split} {source}: nothing reads {', '.join(sorted(report.unread))}"
    if report.unread_texts:
        words += f"; look whether {', '.join(sorted(report.unread_texts))} should be a part of the prompt or a response"
    severity: Severity = "note" if report.unread_texts else "ok"
    numbers = {"rows": dict(sorted(report.unread.items())), "of_note": dict(sorted(report.unread_texts.items()))}
    return [Finding("unread", severity, words, split, source, numbers)]


def dated(chat_template: str | None) -> list[Finding]:
    """The chat template that can write the date of the day, which prepared pairs keep."""
    if not re.search(r"\b(strftime_now|datetime)\b", chat_template or ""):
        return []
    words = (
        "the chat template can write today's date (strftime_now): prepared pairs keep the date of their preparation, "
    )
    words += "and the trained model is asked under other dates; a column chat_template_kwargs can fix it, such as "
    words += '{"date_string": "26 Jul 2024"} for Llama 3'
    return [Finding("date", "note", words)]


def lost(split: str, source: str, report: PreparationReport, refuses: bool) -> list[Finding]:
    """The texts that the chat template leaves out or rewrites."""
    if not report.lost:
        return []
    counts = ", ".join(f"{text} in {number} of {report.pairs} pairs" for text, number in report.lost.most_common())
    words = f"{split} {source}: the chat template leaves out or rewrites {counts} (the first: {report.lost_first})"
    words += "; take another template, or accept it by data.lost_text: accept" if refuses else ", which is accepted"
    return [Finding("lost", "stop" if refuses else "warning", words, split, source, {"pairs": dict(report.lost)})]


def prompt_texts(split: str, source: str, report: PreparationReport, template: bool) -> list[Finding]:
    """Check that prompts and the chat template fit together."""
    found = []
    if report.unasked:
        words = (
            f"{split} {source}: in {report.unasked} of {report.pairs} pairs the assistant's turn does not start with "
            "the chat template's generation prompt, so the header of the turn would be trained on; fix the template"
        )
        found.append(Finding("template", "stop", words, split, source, {"unasked": report.unasked}))
    if report.plain and template:
        words = (
            f"{split} {source}: {report.plain} prompts are plain text and do not pass through the tokenizer's chat "
            "template; data.mapping {format: messages} turns them into messages"
        )
        found.append(Finding("plain", "warning", words, split, source, {"plain": report.plain}))
    if report.joined:
        words = f"{split} {source}: {report.joined} pairs have no space between prompt and response; none is added"
        found.append(Finding("joined", "note", words, split, source, {"joined": report.joined}))
    return found
