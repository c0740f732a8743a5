"""The table of held-out metrics."""

from lit_pref.run.summary import held_out_table


def test_an_evaluation_alone_has_one_column_of_values():
    after = {"val/rewards/accuracies": 0.75}
    alone, both = held_out_table({}, after), held_out_table({"val/rewards/accuracies": 0.5}, after)
    assert "before" not in alone and "after" not in alone and "0.750" in alone
    assert "before" in both and "after" in both and "0.500" in both and "0.750" in both
