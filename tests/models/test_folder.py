import hashlib
import os
import socket
import subprocess
import sys

import pytest

from lit_pref import cache
from lit_pref.cache import file_digest
from lit_pref.errors import UserError
from lit_pref.models.folder import model_folder, tokenizer_folder
from lit_pref.models.spec import ModelSpec


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs" / "sft-llama").mkdir(parents=True)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "runs" / "sft-llama" / file).write_text("{}")
    return tmp_path / "runs" / "sft-llama"


def test_a_folder_is_found_by_any_way_of_writing_its_path(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in ("runs/sft-llama", "./runs/sft-llama/", str(folder), "~/sft-llama"):
        assert model_folder(name).resolve() == tokenizer_folder(name).resolve() == folder.resolve()


@pytest.mark.parametrize("name", ["./runs/sft-lama", "runs/sft-lama", "runs/sft-lama/", "{}/runs/sft-lama"])
def test_a_mistyped_path_gets_its_nearest_neighbour(folder, tmp_path, name):
    with pytest.raises(UserError, match=r"\(nearest: \S*runs/sft-llama\)"):
        model_folder(name.format(tmp_path))


def test_a_path_through_a_missing_folder_says_so(folder):
    with pytest.raises(UserError, match=r"there is no folder './rnus/sft-llama' \(nor a folder 'rnus'\)"):
        model_folder("./rnus/sft-llama")


def test_a_file_is_no_folder(folder):
    with pytest.raises(UserError, match="is a file: give the folder"):
        model_folder(str(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("missing", "extra", "sentence"),
    [
        ("config.json", "x", "has no config.json, so it is not a model folder"),
        ("config.json", "adapter_config.json", "contains a LoRA adapter, and a whole model is needed here"),
        ("tokenizer.json", "adapter_config.json", "contains both a model and a LoRA adapter"),
        ("model.safetensors", "x", "a config.json but no weights in safetensors"),
        ("model.safetensors", "pytorch_model.bin", "are pickled files, which can run code when read"),
    ],
)
def test_a_folder_that_is_no_model_says_what_is_missing(folder, missing, extra, sentence):
    (folder / missing).unlink()
    (folder / extra).write_text("")
    with pytest.raises(UserError, match=sentence):
        model_folder(str(folder))


def test_a_folder_without_a_tokenizer_says_so(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="contains no tokenizer"):
        tokenizer_folder(str(folder))


UNREACHABLE = "as a hub name it is not in the local cache and the Hugging Face hub cannot be reached"


def test_a_hub_that_is_switched_off_says_so_at_once(tmp_path):
    # The library reads the switch when it is imported: a process of its own, with a cache of its own.
    said = ask("org/nope", tmp_path, HF_HUB_OFFLINE="1")
    assert f"'org/nope' is not a folder here (nor a folder 'org'), and {UNREACHABLE} (HF_HUB_OFFLINE is set)" in said


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://hub.invalid"])
def test_a_hub_that_cannot_be_reached_says_so_within_seconds(tmp_path, endpoint):
    # Nothing listens, or there is no such name: both fail without a packet leaving this machine's resolver.
    assert UNREACHABLE in ask("org/nope", tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=endpoint)


def test_a_hub_that_never_answers_is_not_waited_for(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert UNREACHABLE in ask("org/nope", tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=endpoint)


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_what_was_downloaded_before_is_found_without_the_hub(tmp_path, environment):
    cached = tmp_path / "hub" / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123abc")
    (cached / "snapshots" / "0123abc").mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (cached / "snapshots" / "0123abc" / file).write_text("{}")
    assert ask("org/name", tmp_path, **{"HF_HUB_OFFLINE": "0", **environment}).strip() == str(
        cached / "snapshots/0123abc"
    )


def ask(name, tmp_path, **environment):
    code = (
        "import time\n"
        "from lit_pref.errors import UserError\n"
        "from lit_pref.models import folder\n"
        "folder.HUB_TIMEOUT /= 10\n"
        "start = time.monotonic()\n"
        f"try: print(folder.model_folder({name!r}))\n"
        "except UserError as error: print(error)\n"
        "assert time.monotonic() - start < 30\n"  # a hang lasts a minute or for ever
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_the_digest_of_a_large_file_is_kept_on_disk_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"a" * 2**20)
    small.write_bytes(b"a")
    assert file_digest(large) == hashlib.sha256(b"a" * 2**20).hexdigest()
    assert not (tmp_path / "cache").exists()  # it changed just now, and may again within one tick of the clock
    cache._digest.cache_clear()
    monkeypatch.setattr(cache, "_SETTLED", -1)
    for file in (large, small):
        assert file_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    kept.write_text("f" * 64)
    cache._digest.cache_clear()  # another process
    assert file_digest(large) == "f" * 64
    large.write_bytes(b"b" * 2**20)
    assert file_digest(large) == hashlib.sha256(b"b" * 2**20).hexdigest()


def test_a_fingerprint_is_of_all_files_that_decide_a_models_numbers(folder):
    def fingerprint(trust=False):
        return ModelSpec(path=str(folder), trust_remote_code=trust).fingerprint()

    seen = {fingerprint()}
    (folder / "README.md").write_text("words")
    (folder / "model.py").write_text("scale = 1")
    (folder / "tokenizer.json").write_text("[]")
    assert seen == {fingerprint()}
    seen.add(fingerprint(trust=True))
    (folder / "model.py").write_text("scale = 2.0")
    seen.add(fingerprint(trust=True))
    for number, name in enumerate(("model.safetensors", "config.json", "more.safetensors")):
        (folder / name).write_text("{}" + " " * (number + 1))
        seen.add(fingerprint())
    assert len(seen) == 6


def test_a_word_that_stands_for_a_folder_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="'FOLDER' stands for a model in a configuration to copy: put the model's folder"
    ):
        model_folder("FOLDER")
    (tmp_path / "FOLDER").mkdir()
    with pytest.raises(UserError, match=r"'FOLDER' has no config\.json"):
        model_folder("FOLDER")
