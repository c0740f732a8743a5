"""TensorBoard's files of a study: sessions grouped by cell, means with bands, texts and figures, without TensorFlow."""

import pytest
from studies.computed_trials import ended, number, plan_by_hand
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lit_pref.studies.boards import _hparams, scalar, shows_trials, write_events
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


def test_hparams_have_a_row_a_cell_means_have_bands_and_texts_are_there(study: Study, boards: EventMultiplexer):
    metadata = boards.SummaryMetadata(".", "_hparams_/experiment")
    experiment = HParamsPluginData.FromString(metadata.plugin_data.content).experiment
    assert [info.display_name for info in experiment.hparam_infos] == ["target", "beta"]
    assert [info.display_name for info in experiment.metric_infos] == ["score", "other", "trials"]
    for cell in plan_by_hand(study).cells:
        run = f"mean/{cell.name}"
        start = boards.SummaryMetadata(run, "_hparams_/session_start_info").plugin_data.content
        session = HParamsPluginData.FromString(start).session_start_info
        assert (session.group_name, session.hparams["beta"].string_value) == (cell.name, cell.labels["beta"])
        mean = sum(number(cell.name, seed) for seed in study.seeds) / 4
        assert [event.value for event in boards.Scalars(run, "study/score")] == pytest.approx([mean])

    run = "mean/target=hard,beta=0.1"
    mean, low, high = (boards.Scalars(run, tag) for tag in ("score", "within_95/score/low", "within_95/score/high"))
    assert [event.step for event in mean] == [0, 4, 10]
    expected = sum(number("target=hard,beta=0.1", seed) for seed in study.seeds) / 4
    assert mean[-1].value == pytest.approx(expected) and low[-1].value < expected < high[-1].value
    found = boards.Runs()["."]
    texts = {
        tag: boards.Tensors(".", tag)[0].tensor_proto.string_val[0].decode()
        for tag in found["tensors"]
        if tag.startswith("study/")
    }
    assert texts["study/question"] == study.question and "Verdict: shown to be better" in texts["study/result"]
    assert found["images"] == ["study/effects"]
    assert b"within_95/score/low" in boards.Tensors(".", "custom_scalars__config__")[0].tensor_proto.string_val[0]


def test_single_trials_are_shown_under_their_own_tags_as_long_as_tensorboard_selects_them(study: Study):
    for cell in plan_by_hand(study).cells:
        for seed in study.seeds:
            trial = Trial(study.folder, cell.name, seed)
            ended(trial, cell.labels).write(trial)
            hidden = _hparams("session_start_info", HParamsPluginData())
            write_events(trial.run_dir, [scalar("val/loss", 4, 0.5), hidden])
    table = write_report(study, plan_by_hand(study))
    run = study.folder / "tb" / "runs" / "target=hard,beta=0.1" / "s2"
    found = EventMultiplexer().AddRunsFromDirectory(str(run))
    found.Reload()
    assert found.Runs()["."]["scalars"] == ["val/loss"] and not found.Runs()["."]["tensors"]
    assert shows_trials(table, 35) and not shows_trials(table, 36)


def test_curves_drop_what_a_killed_run_logged_after_its_last_checkpoint(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    for purge, steps in ((0, (1, 2, 3)), (3, (3, 4))):
        logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False, purge_step=purge)
        for step in steps:
            logger.log_metrics({"val/loss": step + 10.0 * purge, "lr": 1.0}, step)
        logger.experiment.close()
    assert curves_of(tmp_path) == {"val/loss": [(1, 1.0), (2, 2.0), (3, 33.0), (4, 34.0)]}
