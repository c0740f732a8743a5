"""Study files for the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pref.studies.reading import read_study
from lit_pref.studies.study import Study

MARGIN = {"class_path": "MarginTarget", "init_args": {"gamma": 0.8}}
CONTENT: dict[str, Any] = {
    "question": "Does the margin help?",
    "hypothesis": "It does at every beta",
    "base": "base.yaml",
    "axes": {"model.objective.target": {"hard": "Hard", "margin": MARGIN}, "model.objective.beta": [0.1, 0.3]},
    "seeds": [0, 1, 2, 3],
    "measure": {"primary": {"metric": "score", "goal": "max"}, "also": ["other"]},
    "compare": {"against": "target=hard"},
}


@pytest.fixture
def write_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a study file into a folder, with some keys changed; None leaves a key out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("model: {objective: DPO}\n")

    def write(folder: str = "study", **changes: Any) -> Path:
        content = {name: value for name, value in {**CONTENT, **changes}.items() if value is not None}
        file = Path(folder) / "study.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.fixture
def study(write_study: Callable[..., Path]) -> Study:
    """Two targets at two values of beta, with four seeds."""
    return read_study(write_study())
