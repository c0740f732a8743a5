import math

import pyarrow.parquet as pq
import pytest
import torch

from lit_pref.errors import UserError
from lit_pref.metrics.records import PairRecords, merge, pair_values, read_parquet, select, write_parquet
from lit_pref.scores import PairScores, SequenceScores


def collect(steps, columns=()):
    records = PairRecords(columns)
    for step in steps:
        records.add(step.pairs, step.policy, step.references, step.output)
    return records.collect()


def test_a_record_holds_the_values_of_its_pair_against_reference_0(take):
    step = take([0])
    length = torch.tensor([7])
    step.policy = PairScores(
        SequenceScores(torch.tensor([-12.0]), length), SequenceScores(torch.tensor([-15.0]), length)
    )
    step.references = [
        PairScores(SequenceScores(torch.tensor([-13.0]), length), SequenceScores(torch.tensor([-14.5]), length)),
        PairScores(SequenceScores(torch.tensor([-99.0]), length), SequenceScores(torch.tensor([-1.0]), length)),
    ]
    step.output.losses = torch.tensor([0.625])
    step.output.chosen_rewards, step.output.rejected_rewards = torch.tensor([0.125]), torch.tensor([-0.5])
    step.output.logged = {"target": torch.tensor([0.75]), "clipped": torch.tensor([True])}
    step.pairs.margin, step.pairs.probability = torch.tensor([2.0]), torch.tensor([0.5])
    records = collect([step])
    prompt = records.pop("prompt")
    assert records == {
        "id": ["pair-000"],
        "loss": [0.625],
        "chosen_reward": [0.125],
        "chosen_logp": [-12.0],
        "chosen_length": [7],
        "rejected_reward": [-0.5],
        "z": [0.625],
        "rejected_logp": [-15.0],
        "rejected_length": [7],
        "chosen_change": [1.0],  # -12 + 13
        "z_reference0": [1.5],  # 1 - (-15 + 14.5)
        "target": [0.75],
        "clipped": [True],
        "margin": [2.0],
        "probability": [0.5],
        "group": ["source 0"],
    }
    assert len(prompt) == 1 and isinstance(prompt[0], str)


def test_with_one_reference_the_accuracy_under_it_alone_is_not_recorded(take):
    step = take([0, 1])
    step.references = step.references[:1]
    records = collect([step])
    assert "z_reference0" not in records and "chosen_change" in records


def test_fillers_are_left_out(take):
    assert collect([take([4, 5, 6], is_real=[True, False, True])])["id"] == ["pair-004", "pair-006"]


@pytest.mark.parametrize("world", [2, 3])
def test_records_do_not_depend_on_the_number_of_ranks(deal, world):
    whole = merge([collect(steps, ["p_true"]) for steps in deal(1)])
    split = merge([collect(steps, ["p_true"]) for steps in deal(world)])
    assert whole["id"] == [f"pair-{i:03d}" for i in range(37)]
    assert split == whole


def test_a_pair_that_two_ranks_saw_counts_once(take):
    first, second = collect([take([1, 2])]), collect([take([2, 3])])
    second["loss"] = [100.0, 200.0]
    merged = merge([first, second])
    assert merged["id"] == ["pair-001", "pair-002", "pair-003"]
    assert merged["loss"] == [*first["loss"], 200.0]  # the first rank's record stands


def test_one_sided_pairs_have_only_what_exists(one_sided):
    records = collect([one_sided])
    assert not {"z", "rejected_reward", "rejected_logp", "rejected_length", "z_reference0"} & set(records)
    assert len(records["chosen_change"]) == 2


def test_a_value_that_a_pair_does_not_have_is_none_and_not_a_number(take):
    with_margin, without = take([0]), take([1])
    without.pairs.margin = None
    without.output.logged = {}
    records = collect([without, with_margin])
    assert records["margin"][0] is None and records["beta"][0] is None
    assert records["margin"][1] == with_margin.pairs.margin.item()
    assert merge([collect([without]), collect([with_margin])])["margin"] == [with_margin.pairs.margin.item(), None]


def test_pairs_of_one_prompt_share_its_digest(take):
    prompt = collect([take([0, 1, 5])])["prompt"]  # prompts 0, 1, 0
    assert prompt[0] == prompt[2] != prompt[1]


def test_collect_starts_anew(take):
    records = PairRecords()
    step = take([0])
    records.add(step.pairs, step.policy, step.references, step.output)
    assert records.collect()["id"] == ["pair-000"]
    assert records.collect() == {"id": []}


def test_an_asked_column_that_the_data_lack_is_refused_by_name(take):
    with pytest.raises(UserError, match=r"'p_gold'.*columns: p_true"):
        collect([take([0])], ["p_gold"])


def test_an_asked_column_with_a_name_of_the_record_is_refused(take):
    step = take([0])
    step.pairs.columns["loss"] = torch.zeros(1)
    with pytest.raises(ValueError, match="'loss'"):
        collect([step], ["loss"])


def test_a_logged_value_with_a_name_of_the_record_is_refused(take):
    step = take([0])
    step.output.logged["z"] = torch.zeros(1)
    with pytest.raises(ValueError, match="may not log z"):
        collect([step])


@pytest.mark.parametrize("size", [1, 3])
def test_a_value_that_is_not_one_a_pair_is_refused(take, size):
    step = take(list(range(size)))
    step.output.losses = step.output.losses[:, None]
    with pytest.raises(ValueError, match=rf"loss has shape \({size}, 1\)"):
        collect([step])


def test_nothing_recorded_holds_on_to_the_graph(take):
    step = take([0, 1])
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    step.output.losses = weight * step.output.losses
    step.policy.chosen.scores = weight * step.policy.chosen.scores
    step.policy.rejected.scores = weight * step.policy.rejected.scores
    step.output.logged["beta"] = weight * step.output.logged["beta"]
    values = pair_values(step.policy, step.references, step.output, 2)
    assert not any(value.requires_grad for value in values.values())


def test_parquet_gives_back_what_was_written(take, tmp_path):
    step = take([0, 1, 2])
    step.pairs.margin = None
    records = merge([collect([step]), collect([take([3])])])
    records["loss"][1] = math.nan
    path = tmp_path / "records" / "step_10.parquet"
    write_parquet(records, path)
    assert pq.read_metadata(path).num_rows == 4
    assert [file.name for file in path.parent.iterdir()] == ["step_10.parquet"]
    again = read_parquet(path)
    assert math.isnan(again["loss"].pop(1)) and math.isnan(records["loss"].pop(1))
    assert again == records  # None stays None, integers and strings stay what they are


def test_records_without_pairs_can_be_written(tmp_path):
    write_parquet({"id": []}, tmp_path / "none.parquet")
    assert read_parquet(tmp_path / "none.parquet") == {"id": []}


def test_select_keeps_rows_together():
    assert select({"id": ["a", "b"], "z": [1.0, 2.0]}, [False, True]) == {"id": ["b"], "z": [2.0]}
