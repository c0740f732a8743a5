"""A table of the settings in which runs differ, from their resolved configurations and their manifests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_pref.comparing.run_record import RunRecord

ABSENT = "-"
"""The value of a setting that a run does not have, because its class has no such argument."""
PLACES = ("run_dir", "ckpt_path", "print_summary", "trainer.default_root_dir")
"""Settings that say where a run is, not what it trains."""


@dataclass(frozen=True)
class SettingDifference:
    """A setting and its value in each run; `recorded` ones are from the manifests, not from the configurations."""

    name: str
    values: tuple[str, ...]
    recorded: bool = False


def setting_differences(runs: Sequence[RunRecord]) -> list[SettingDifference]:
    """Return the settings that are not the same in all runs, those of the configurations first, in their order."""
    configs = [flat_settings(run.config) for run in runs]
    recorded = [_recorded(run.manifest) if run.manifest else {} for run in runs]
    found = _different(configs, recorded=False) + _different(recorded, recorded=True)
    return [difference for difference in found if difference.name not in PLACES]


def _different(every: Sequence[Mapping[str, str]], recorded: bool) -> list[SettingDifference]:
    known = [settings for settings in every if settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    found = []
    for name in names:
        values = {settings.get(name, ABSENT) for settings in known}
        # A part that one class leaves open, as null, and another fills by itself, says nothing beside their names.
        if len(values) > 1 and values != {ABSENT, "null"}:
            found.append(SettingDifference(name, tuple(settings.get(name, ABSENT) for settings in every), recorded))
    return found


def flat_settings(value: Any, name: str = "") -> dict[str, str]:
    """Return the settings of a configuration by dotted names, as options of the command line name them.

    The name of a class stands for its node, and its arguments are below it.

    >>> flat_settings({"objective": {"class_path": "lit_pref.DPO", "init_args": {"beta": 0.1}}, "columns": []})
    {'objective': 'DPO', 'objective.beta': '0.1', 'columns': '[]'}
    """
    if isinstance(value, dict) and "class_path" in value:
        own = {name: str(value["class_path"]).rpartition(".")[2]}
        return own | _below(value.get("init_args") or {}, name)
    if isinstance(value, dict) and value:
        return _below(value, name)
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return _below({str(k): entry for k, entry in enumerate(value)}, name)
    return {name: "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)}


def _below(values: Mapping[str, Any], name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat_settings(value, f"{name}.{key}" if name else key)
    return found


def _recorded(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The facts of a manifest that decide numbers and are not in the configuration, by plain names."""
    facts: dict[str, Any] = {}
    for split, words in (("train", "training pairs"), ("val", "validation pairs")):
        data = manifest.get("data", {}).get(split, {})
        pairs = sum(source.get("pairs", 0) for source in data.get("sources", {}).values())
        facts[words] = f"{pairs}, digest {str(data.get('digest', ''))[:8]}"
    facts["policy before training"] = _model(manifest.get("policy", {}))
    facts["references"] = "; ".join(map(_model, manifest.get("references", []))) or "none"
    facts["layout"] = manifest.get("layout")
    for name in ("tokenizer", "chat_template"):
        facts[name.replace("_", " ")] = None if manifest.get(name) is None else str(manifest[name])[:8]
    facts["commit"] = str((manifest.get("git") or {}).get("commit", ""))[:8] or None
    hardware = manifest.get("hardware", {})
    facts["devices"] = f"{hardware.get('devices')} ({', '.join(hardware.get('gpus', [])) or 'CPU'})"
    facts |= {f"version of {name}": version for name, version in manifest.get("versions", {}).items()}
    return {name: ABSENT if value is None else str(value) for name, value in facts.items()}


def _model(described: Mapping[str, Any]) -> str:
    return f"{described.get('what', ABSENT)} ({str(described.get('fingerprint', ''))[:8]})"
