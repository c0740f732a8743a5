"""YAML whose aliases expand without measure is refused, in configurations, values and mappings."""

from pathlib import Path

import pytest

from lit_pref.data.formats.mapping_file import read_yaml
from lit_pref.errors import UsageError
from lit_pref.parser import Parser
from lit_pref.yaml_limits import refuse_alias_bomb

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
BOMB += "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 10))
ITSELF = "a: &a [1, *a]\n"


@pytest.mark.parametrize("text", [BOMB, ITSELF], ids=["bomb", "itself"])
def test_aliases_without_measure_are_refused_with_file_and_remedy(tmp_path: Path, text: str):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"The mapping .*c\.yaml: its YAML aliases .* write out the values"):
        read_yaml(file)
    parser = Parser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--a0", type=list[str])
    with pytest.raises(UsageError, match=r"the configuration .*c\.yaml: its YAML aliases .* write out the values"):
        parser.parse_args([f"--config={file}"])
    with pytest.raises(UsageError, match=r"the value that begins with .*: its YAML aliases"):
        parser.parse_args([f"--a0={text}"])


def test_aliases_of_ordinary_size_stay():
    assert refuse_alias_bomb("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: '2 * 3 & 4'}\n", "here") is None
    assert refuse_alias_bomb("a: [&a 1, *b]", "here") is None  # a fault that the reader of YAML names
