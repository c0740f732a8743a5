"""TensorBoard's files of a study: sessions grouped by cell, means with bands, texts and figures, without TensorFlow."""

import pytest
from studies.computed_trials import ended, number, plan_by_hand
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lit_pref.studies.report import write_report
from lit_pref.studies.study import Study
from lit_pref.studies.trial import Trial, curves_of


@pytest.fixture
def boards(study: Study) -> EventMultiplexer:
    for cell in plan_by_hand(study).cells:
        for seed in study.seeds:
            trial = Trial(study.folder, cell.name, seed)
            ended(trial, cell.labels).write(trial)
    write_report(study, plan_by_hand(study))
    write_report(study, plan_by_hand(study))  # written anew, not added to
    found = EventMultiplexer().AddRunsFromDirectory(str(study.folder / "tb"))
    found.Reload()
    return found


def test_hparams_declare_axes_and_measures_and_group_the_seeds_of_a_cell(study: Study, boards: EventMultiplexer):
    metadata = boards.SummaryMetadata(".", "_hparams_/experiment")
    experiment = HParamsPluginData.FromString(metadata.plugin_data.content).experiment
    assert [info.display_name for info in experiment.hparam_infos] == ["target", "beta"]
    assert [info.display_name for info in experiment.metric_infos] == ["score", "other"]
    groups: dict[str, int] = {}
    for cell in plan_by_hand(study).cells:
        for seed in study.seeds:
            run = f"runs/{cell.name}/s{seed}"
            start = boards.SummaryMetadata(run, "_hparams_/session_start_info").plugin_data.content
            session = HParamsPluginData.FromString(start).session_start_info
            groups[session.group_name] = groups.get(session.group_name, 0) + 1
            assert session.hparams["beta"].string_value == cell.labels["beta"]
            assert [event.value for event in boards.Scalars(run, "study/score")] == pytest.approx(
                [number(cell.name, seed)]
            )
    assert groups == {cell.name: 4 for cell in plan_by_hand(study).cells}


def test_means_have_bands_and_texts_and_the_plot_of_effects_are_there(study: Study, boards: EventMultiplexer):
    run = "mean/target=hard,beta=0.1"
    mean, low, high = (boards.Scalars(run, f"mean/score{end}") for end in ("", "/low", "/high"))
    assert [event.step for event in mean] == [0, 4, 10]
    expected = sum(number("target=hard,beta=0.1", seed) for seed in study.seeds) / 4
    assert mean[-1].value == pytest.approx(expected) and low[-1].value < expected < high[-1].value
    texts = {
        tag: boards.Tensors(".", tag)[0].tensor_proto.string_val[0].decode()
        for tag in boards.Runs()["."]["tensors"]
        if tag.startswith("study/")
    }
    assert texts["study/question"] == study.question and "Verdict: shown for" in texts["study/result"]
    assert boards.Runs()["."]["images"] == ["study/effects"]
    assert b"mean/score/low" in boards.Tensors(".", "custom_scalars__config__")[0].tensor_proto.string_val[0]


def test_curves_drop_what_a_killed_run_logged_after_its_last_checkpoint(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    for purge, steps in ((0, (1, 2, 3)), (3, (3, 4))):
        logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False, purge_step=purge)
        for step in steps:
            logger.log_metrics({"val/loss": step + 10.0 * purge, "lr": 1.0}, step)
        logger.experiment.close()
    assert curves_of(tmp_path) == {"val/loss": [(1, 1.0), (2, 2.0), (3, 33.0), (4, 34.0)]}
