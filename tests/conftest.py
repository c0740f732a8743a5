"""Shared fixtures: an offline hub, one thread, a temporary cache, and small models and pairs made by the tests."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import pytest
import torch
from scripted_server import Server

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
WORDS = ["red", "green", "blue", "tin", "iron", "oak", "elm", "cat", "dog", "owl", "one", "two", "three", "big", "old"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is cached during the tests, away from the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["LIT_PREF_CACHE"] = str(folder)
    return folder


def write_pairs(path: Path, number: int, seed: int = 0, prompts: int | None = None) -> Path:
    """`number` distinct pairs over `prompts` prompts (default: one each), of different lengths and margins."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 6))) + f" {k}" for k in range(prompts or number)]
    with path.open("w", encoding="utf-8") as file:
        for k in range(number):
            row = {
                "prompt": texts[k % len(texts)] + " :",
                "chosen": " " + " ".join(rng.choices(WORDS, k=rng.randint(1, 7))) + f" good {k}",
                "rejected": " " + " ".join(rng.choices(WORDS, k=rng.randint(1, 9))) + f" bad {k}",
                "margin": round(rng.uniform(0.1, 4.0), 3),
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 pairs: with a global batch of 8 the last window of an epoch is ragged."""
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 46)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """An HF folder: a two-layer Llama with random weights and a small tokenizer."""
    return make_policy(tmp_path_factory.mktemp("models") / "policy", seed=0)


def make_policy(folder: Path, seed: int, vocabulary: int = 300, **config: object) -> Path:
    """An HF folder with random weights that are large enough for references to disagree."""
    from lit_pref.models.spec import Corpus, ModelSpec

    small = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.2, **config}
    policy = ModelSpec(config=small, vocabulary=vocabulary, seed=seed)
    tokenizer = policy.load_tokenizer(Corpus("tests", lambda: [" ".join(WORDS), "good bad 0 1 2 3 4 5 6 7 8 9 :"]))
    policy.build().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """An HF folder of a language model for commands that write responses."""
    return make_policy(tmp_path_factory.mktemp("models") / "model", seed=1)


@pytest.fixture(scope="session")
def chat_model(model: Path) -> Path:
    """`model` with a chat template."""
    folder = model.with_name("chat")
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def serving(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve`, as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", str(chat_model), "--host", "127.0.0.1", "--port", str(port)]
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    server = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log, env={**os.environ})
    url = f"http://127.0.0.1:{port}/v1"
    for _ in range(600):
        assert server.poll() is None, Path(log.name).read_text()
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5).read()
            break
        except OSError:
            time.sleep(0.2)
    yield url
    server.terminate()
    server.wait(30)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server whose answers the test writes."""
    started = Server()
    yield started
    started.close()


def run_command(
    *arguments: str | Path, cwd: Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m lit_pref ...` as a user runs it, in `cwd`."""
    return subprocess.run(
        [sys.executable, "-m", "lit_pref", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def lit_pref(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in a folder of its own, with `configs/` beside it."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, cwd=tmp_path, **environment)

    return run
