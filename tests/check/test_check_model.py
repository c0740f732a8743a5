"""The option `check --model`: scores of policy and references computed in several ways must agree."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_policy, write_pairs
from torch.nn.functional import dropout, scaled_dot_product_attention
from training_runs import logps
from transformers import AutoModelForCausalLM

from lit_pref.__main__ import main
from lit_pref.check import memory, model_findings
from lit_pref.check.probe import Probe
from lit_pref.check.step_memory import PARTS
from lit_pref.models.spec import ModelSpec
from lit_pref.scoring.prefix_attention import PrefixSharedAttention

pytestmark = pytest.mark.filterwarnings("ignore")
MMPO = ["--config", str(ROOT / "configs" / "mmpo.yaml")]
DPO = ["--config", str(ROOT / "configs" / "dpo.yaml")]
MRPO = ["--config", str(ROOT / "configs" / "mrpo.yaml")]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy_folder: Path):
    """Run `check --model` on 24 pairs; return its exit code, its findings by topic, and the probe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    write_pairs(tmp_path / "pairs.jsonl", 24)
    (tmp_path / "policy").symlink_to(policy_folder)
    seen: list[Probe] = []
    monkeypatch.setattr(model_findings, "memory", lambda *given: (seen.append(given[0]), memory.memory(*given))[1])

    def run(*arguments: str | Path) -> tuple[int, dict[str, list[dict[str, Any]]], Probe]:
        common = ["--model.policy.path", "policy", "--data.train", "pairs.jsonl", "--trainer.accelerator", "cpu"]
        with pytest.raises(SystemExit) as ended:
            main(["check", *map(str, arguments), *common, "--model", "--json", "out.json"])
        report: dict[str, list[dict[str, Any]]] = {}
        for finding in json.loads(Path("out.json").read_text())["findings"]:
            report.setdefault(finding["topic"], []).append(finding)
        return int(ended.value.code or 0), report, seen[-1]

    return run


def test_where_the_policy_is_its_own_reference_the_first_loss_is_ln_2(check, tmp_path: Path):
    code, found, probe = check(*MMPO)
    (loss,) = found["first_loss"]
    assert code == 0 and loss["severity"] == "ok" and "ln 2 = 0.6931" in loss["says"]
    assert loss["numbers"]["expected"] == pytest.approx(math.log(2)) and loss["numbers"]["policy_is_reference"]
    assert loss["numbers"]["actual"] == pytest.approx(math.log(2), abs=1e-5)
    assert [f["severity"] for f in found["twice"]] == ["ok", "ok"] and found["layouts"][0]["numbers"]["shared"]
    # What is scored, by the model's own logits.
    alone = logps(AutoModelForCausalLM.from_pretrained(tmp_path / "policy"), probe.pairs)
    right = [a > b for a, b in zip(alone["chosen_logp"], alone["rejected_logp"], strict=True)]
    assert [f["numbers"]["accuracy"] for f in found["alone"]] == pytest.approx([sum(right) / len(right)] * 2)
    parameters = sum(p.numel() for p in probe.scorer.parameters())
    size = found["memory"][0]["numbers"]
    buffers = sum(b.numel() * b.element_size() for b in probe.scorer.buffers())
    assert size["weights"] == 4 * parameters + buffers
    assert size["optimiser"] == 8 * parameters + 4 * len(list(probe.scorer.parameters()))  # and a count of steps each
    assert 0 < size["gradients"] <= 4 * parameters and size["activations"] > 0
    assert size["total"] == sum(size[part] for part in PARTS)
    assert not (tmp_path / "runs").exists()


def test_with_three_references_the_first_loss_is_that_of_their_mixture(check, tmp_path: Path):
    folders = ["policy", *(str(make_policy(tmp_path / f"other{k}", seed=k)) for k in (1, 2))]
    references = [{"class_path": "InitialPolicy"}]
    references += [{"class_path": "Pretrained", "init_args": {"path": folder}} for folder in folders[1:]]
    (tmp_path / "three.yaml").write_text(json.dumps({"model": {"references": references}}))
    options = ["--model.objective.beta", "0.05", "--model.objective.weights", "[0.5, 0.3, 0.2]"]
    code, found, probe = check(*MRPO, "--config", "three.yaml", *options, "--model.objective.adaptive", "false")
    (loss,), (mixture,) = found["first_loss"], found["mixture"]
    scores = []
    for folder in folders:
        of = logps(AutoModelForCausalLM.from_pretrained(folder), probe.pairs)
        scores.append([of["chosen_logp"], of["rejected_logp"]])
    # -logsumexp_k(log a_k - r^_k), the others within a tenth of the anchor's score, which is the policy's own.
    losses, edge = [], 0
    for pair in range(len(probe.pairs)):
        mixed = []
        for side in (0, 1):
            anchor = scores[0][side][pair]
            held = [anchor] + [max(1.1 * anchor, min(0.9 * anchor, s[side][pair])) for s in scores[1:]]
            edge += sum(h != s[side][pair] for h, s in zip(held[1:], scores[1:], strict=True))
            terms = [math.log(a) - h for a, h in zip((0.5, 0.3, 0.2), held, strict=True)]
            mixed.append(-max(terms) - math.log(sum(math.exp(t - max(terms)) for t in terms)))
        gap = (scores[0][0][pair] - mixed[0]) - (scores[0][1][pair] - mixed[1])
        losses.append(math.log1p(math.exp(-0.05 * gap)))
    expected = sum(losses) / len(losses)
    assert code == 0 and abs(expected - math.log(2)) > 1e-3
    assert loss["numbers"]["expected"] == pytest.approx(expected, abs=1e-4)
    assert loss["numbers"]["actual"] == pytest.approx(expected, abs=1e-4)
    assert mixture["numbers"]["clipped"] == pytest.approx(edge / (4 * len(losses)), abs=1e-6)
    assert sum(mixture["numbers"]["weights"]) == pytest.approx(1) and len(mixture["numbers"]["weights"]) == 3
    right = [sum(a > b for a, b in zip(*of, strict=True)) / len(losses) for of in scores]
    assert [f["numbers"]["accuracy"] for f in found["alone"][1:]] == pytest.approx(right)


def test_third_responses_are_read_from_the_store_and_counted_in_the_memory(check, tmp_path: Path):
    made = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    extra_response = [{**row, "extra_response": " " + " ".join(["oak"] * (1 + k % 9))} for k, row in enumerate(made)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in extra_response))
    options = ["--model.objective", "SELM", "--model.layout", "prefix_shared", "--data.val_fraction", "0"]
    code, found, probe = check(*DPO, *options, "--data.micro_batch", "24")
    assert code == 0 and [f["severity"] for f in found["twice"]] == ["ok", "ok"]
    # ln 2, and no change of an extra response: the policy is its own reference.
    assert found["first_loss"][0]["numbers"]["actual"] == pytest.approx(math.log(2), abs=1e-5)
    tokens = sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) + len(p.extra_response) for p in probe.pairs)
    assert found["memory"][0]["numbers"]["tokens"] == tokens


def test_a_selection_that_asks_a_model_is_made_and_memory_is_that_of_the_runs_devices(check):
    options = ["--data.selection", "ImplicitMargin", "--data.selection.count", "8", "--data.val_fraction", "0"]
    devices = ["--trainer.devices", "2", "--trainer.num_nodes", "2", "--data.global_batch", "8"]
    _, found, probe = check(*MMPO, *options, *devices, "--model.layout", "padded")
    (selection,) = found["selection"]
    assert selection["severity"] == "ok" and selection["numbers"] == {"pairs": 8, "of": 24}
    assert "ImplicitMargin" in selection["says"] and len(probe.pairs) == 8
    # The pairs on which the policy itself is least decided, by mean log-probs.
    pairs = sorted(probe.data.unselected, key=lambda pair: pair.id)
    alone = logps(AutoModelForCausalLM.from_pretrained("policy"), pairs)
    means = zip(alone["chosen_logp"], alone["rejected_logp"], pairs, strict=True)
    apart = {pair.id: abs(won / len(pair.chosen) - lost / len(pair.rejected)) for won, lost, pair in means}
    assert {pair.id for pair in probe.pairs} == set(sorted(apart, key=lambda id: apart[id])[:8])
    size = found["memory"][0]["numbers"]
    longest = max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in probe.pairs)
    # Of 8 pairs a step on 4 devices each takes 2, with both responses.
    assert size["devices"] == 4 and size["tokens"] == 2 * 2 * longest


def test_a_policy_that_draws_at_every_reading_is_caught(check, monkeypatch: pytest.MonkeyPatch):
    build = ModelSpec.build

    def noisy(self: ModelSpec) -> Any:
        model: Any = build(self)
        model.get_input_embeddings().register_forward_hook(lambda m, args, out: dropout(out, 0.1, training=True))
        return model

    monkeypatch.setattr(ModelSpec, "build", noisy)
    code, found, _ = check(*MMPO)
    (policy, *_) = found["twice"]
    assert code == 1 and policy["severity"] == "stop" and "something in the model is random" in policy["says"]
    assert found["first_loss"][0]["severity"] == "stop"


def test_dropout_that_was_asked_for_is_a_warning(check):
    _, found, _ = check(*MMPO, "--model.policy.dropout", "0.2", "--model.reference_store", "false")
    assert found["twice"][0]["severity"] == "warning" and "dropout is on" in found["twice"][0]["says"]
    assert found["twice"][1]["severity"] == "ok", "a reference is read without"


def test_a_shared_layout_that_shows_the_chosen_response_to_the_rejected_one_is_caught(
    check, monkeypatch: pytest.MonkeyPatch
):
    def leaking(self: PrefixSharedAttention, query: Any, key: Any, value: Any, scale: float | None) -> Any:
        self.calls += 1
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)

    monkeypatch.setattr(PrefixSharedAttention, "__call__", leaking)
    # Prefix sharing is tried out when it is enabled, and that would fail first.
    monkeypatch.setattr("lit_pref.check.probe.prefix_sharing_obstacle", lambda policy: None)
    code, found, _ = check(*MMPO, "--model.layout", "padded")
    assert code == 1 and found["layouts"][0]["severity"] == "stop" and found["layouts"][0]["numbers"]["largest"] > 0.01
    assert found["first_loss"][0]["severity"] == "ok"
