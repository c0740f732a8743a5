"""`python -m lit_pref score`: it fills, resumes, checks, shows and frees the store."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_pairs

from lit_pref.__main__ import main
from lit_pref.errors import UsageError
from lit_pref.references.store import ReferenceStore, Scores, StoreIdentity
from lit_pref.references.store_admin import kept

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], policy_folder: Path):
    """Runs a command beside 20 pairs and a policy; gives its exit code, its lines and the sentence of an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    write_pairs(tmp_path / "pairs.jsonl", 20)
    (tmp_path / "policy").symlink_to(policy_folder)

    def run(*arguments: str, command: str = "score") -> tuple[int, list[str], str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([command, *map(str, arguments)])
        said = capfd.readouterr()
        sentences = [line for line in said.err.splitlines() if line.startswith("lit_pref: ")]
        return int(ended.value.code or 0), said.out.splitlines(), " ".join(sentences)

    return run


RUN = ["--config", str(ROOT / "configs" / "dpo.yaml"), "--model.policy.path", "policy", "--data.train", "pairs.jsonl"]
RUN += ["--trainer.accelerator", "cpu", "--data.val_fraction", "0.2"]


def test_it_fills_for_all_pairs_and_a_run_then_computes_nothing(score, tmp_path: Path):
    # A run of one step would see 8 training pairs.
    code, said, _ = score(*RUN, "--trainer.max_steps", "1", "--data.global_batch", "8")
    assert code == 0 and "reference 0 (initial policy): 40 of 40 scores are missing" in said[0]
    assert said[-1].startswith("reference 0 (initial policy): 40 scores in ")
    assert not (tmp_path / "runs").exists()
    code, said, _ = score(*RUN)
    assert code == 0 and len(said) == 1
    options = ["--run_dir", "run", "--data.global_batch", "8", "--print_summary", "false"]
    code, said, _ = score(*RUN, *options, command="fit")
    assert code == 0 and not [line for line in said if "missing" in line]
    assert any(line.endswith("; stored: scores are computed once and kept") for line in said)


def test_verify_says_how_far_stored_scores_are_from_what_is_computed_now(score):
    code, said, _ = score(*RUN, "--verify", "5")
    assert code == 1 and said == ["reference 0 (initial policy), fp32: no scores of these pairs are stored yet"]
    score(*RUN)
    code, said, _ = score(*RUN, "--verify=5")
    assert code == 0 and said[-1].startswith("reference 0 (initial policy), fp32: 10 scores computed again, largest")
    (one,) = kept()
    store = ReferenceStore(StoreIdentity(**one.about))
    (name,) = store.parts()
    part = store.read(name)
    assert part is not None
    wrong = part.scores + np.where(np.arange(len(part.scores)) == 3, 0.25, 0)
    (store.folder / name).unlink()
    store.write(part._replace(scores=wrong))
    code, said, sentence = score(*RUN, "--verify", "20")
    assert code == 1 and "largest difference 2.5e-01 nats (allowed: 0.001 and 1e-06 of the score)" in said[-1]
    assert "stored scores differ from those computed now (reference 0 (initial policy) in " in sentence


def test_a_configuration_without_a_stored_reference_is_refused(score):
    for options in (["--model.reference_store", "false"], ["--model.objective", "SFT"]):
        code, _, sentence = score(*RUN, *options)
        assert code == 2 and "reads no reference from the store" in sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--verify"], "--verify needs a value"),
        (["--verify", "0"], "verify: expected a whole number above 0 or null, got '0'"),
        (["--verify", "many"], "verify: expected a whole number above 0 or null, got 'many'"),
    ],
    ids=str,
)
def test_a_wrong_number_of_pairs_is_refused(score, options: list[str], said: str):
    code, _, sentence = score(*RUN, *options)
    assert code == 2 and said in sentence


def stored(description: str, responses: int, days_ago: float) -> Path:
    store = ReferenceStore(StoreIdentity(description, "fp32", "sum", description))
    store.open()
    addresses = np.array([k.to_bytes(16, "big") for k in range(1, responses + 1)], "S16")
    store.write(Scores(addresses, np.zeros(responses), np.ones(responses, np.int32), None))
    os.utime(store.folder / "about.json", (time.time() - 86400 * days_ago,) * 2)
    return store.folder


def test_the_store_is_listed_without_a_configuration(score):
    assert score("--list")[1] == ["the reference store is empty"]
    folder = stored("runs/sft, float32", 12, days_ago=0)
    _, said, _ = score("--list")
    (row,) = [line for line in said if "runs/sft, float32" in line]
    cells = [cell.strip() for cell in row.split("│")]
    assert cells[1:6] == [folder.name[:12], "runs/sft, float32", "fp32", "sum", "12"]


def test_a_store_whose_description_is_damaged_is_listed_and_pruned(score):
    folder = stored("runs/sft, float32", 12, days_ago=0)
    (folder / "about.json").write_text("{")
    assert any("about.json is damaged" in line for line in score("--list")[1])
    assert score("--prune", folder.name)[0] == 0 and not folder.exists()


def test_what_was_not_used_for_days_or_bears_a_name_is_removed(score):
    old, new, third = (stored(name, 5, days) for name, days in (("old", 30), ("new", 1), ("third", 2)))
    code, said, _ = score("--prune")
    assert code == 0 and said == ["0.0 MiB freed"] and old.exists()
    assert "removed" in score("--prune", "10")[1][0] and not old.exists() and new.exists()
    assert score("--prune", "third")[0] == 0 and not third.exists()
    assert score("--prune", new.name[:12])[0] == 0 and not new.exists()
    code, _, sentence = score("--prune", "nothing")
    assert code == 2 and "no reference in the store has this name; it contains nothing" in sentence


def test_what_is_being_filled_is_not_removed(score):
    folder = stored("busy", 5, days_ago=30)
    lock = ReferenceStore(StoreIdentity("busy", "fp32", "sum", "busy")).claim("block")
    assert lock is not None
    code, _, sentence = score("--prune", "busy")
    assert code == 1 and "is being filled by a running process" in sentence and folder.exists()
    lock.release()
    assert score("--prune", "busy")[0] == 0 and not folder.exists()


def test_help_and_words_that_do_not_belong_together(score):
    code, said, _ = score("--help")
    assert code == 0 and said[0].startswith("usage: python -m lit_pref score [--config FILE]")
    code, _, sentence = score("--list", "--config", "x.yaml")
    assert code == 2 and "--list takes no other option" in sentence
    assert UsageError.exit_code == 2
