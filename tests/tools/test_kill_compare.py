"""Two runs are equal only if something was compared."""

import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tools"))
from kill_compare import logged


def test_a_run_without_logged_values_is_equal_to_no_other(tmp_path: Path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    with pytest.raises(ValueError, match="no logged values"):
        logged(tmp_path)
    for loss in (0.5, 0.25):  # a step that was repeated after a kill
        writer = EventFileWriter(str(tmp_path), filename_suffix=f".{loss}")
        writer.add_event(Event(step=2, summary=Summary(value=[Summary.Value(tag="train/loss", simple_value=loss)])))
        writer.close()
    assert logged(tmp_path) == {"2 train/loss": 0.25}
