"""Writes a study for TensorBoard: HParams with a row a cell, means with bands, texts, effects, and every trial."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pref.studies.rendering import draw_effects, effects_of, markdown
from lit_pref.studies.statistics import t_interval
from lit_pref.studies.study import Study
from lit_pref.studies.table import Row, Table
from lit_pref.studies.trial import Outcome, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_RUNS = 40
"""With more runs in a folder, TensorBoard selects none of them when it opens."""
HPARAMS = "_hparams_/"
LAYOUT = "custom_scalars__config__"


def write_boards(study: Study, table: Table, outcomes: Mapping[tuple[str, int], Outcome]) -> None:
    """Write the folder `tb` of a study anew.

    Args:
        study: the study.
        table: its table.
        outcomes: of its trials.
    """
    root = study.folder / "tb"
    shutil.rmtree(root / "runs", ignore_errors=True)
    if shows_trials(table, len(outcomes)):
        for cell, seed in outcomes:
            trial = Trial(study.folder, cell, seed)
            write_events(root / "runs" / trial.name, _copied(trial))
    for row in table.rows:
        trials = [outcome for (cell, _), outcome in outcomes.items() if cell == row.cell and outcome.state != "failed"]
        if trials:
            write_events(root / "mean" / row.cell, [*_means(study, trials), *_session(row)])
    write_events(root, [_experiment(table), _layout(study), *_texts(study, table), *_figures(table)])


def shows_trials(table: Table, trials: int) -> bool:
    """Whether the folder `tb` has the single trials beside the means; else TensorBoard would show nothing unasked."""
    return trials + len(table.rows) + 1 <= MOST_RUNS


# HParams


def _experiment(table: Table) -> Any:
    """Declare the axes as hyperparameters and the measures as metrics, under their names."""
    from google.protobuf.struct_pb2 import ListValue, Value
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    axes: dict[str, dict[str, None]] = {}
    for row in table.rows:
        for axis, label in row.labels.items():
            axes.setdefault(axis, {})[label] = None
    hparams = [
        api_pb2.HParamInfo(
            name=axis,
            display_name=axis,
            type=api_pb2.DATA_TYPE_STRING,
            domain_discrete=ListValue(values=[Value(string_value=label) for label in labels]),
        )
        for axis, labels in axes.items()
    ]
    names = [*(measure.name for measure in table.study.measures), "trials"]
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"study/{name}"), display_name=name) for name in names]
    named = {"name": table.study.name, "description": table.study.question}
    experiment = api_pb2.Experiment(**named, hparam_infos=hparams, metric_infos=metrics)
    return _hparams("experiment", plugin_data_pb2.HParamsPluginData(experiment=experiment, version=0))


def _session(row: Row) -> Iterator[Any]:
    """A row of the table: its means as scalars, and the session that gives them a row in the HParams."""
    from google.protobuf.struct_pb2 import Value
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    for name, mean in row.means.items():
        yield scalar(f"study/{name}", 0, mean.value)
    yield scalar("study/trials", 0, len(row.seeds))
    start = plugin_data_pb2.SessionStartInfo(group_name=row.cell)
    for axis, label in row.labels.items():
        start.hparams[axis].CopyFrom(Value(string_value=label))
    yield _hparams("session_start_info", plugin_data_pb2.HParamsPluginData(session_start_info=start, version=0))
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    yield _hparams("session_end_info", plugin_data_pb2.HParamsPluginData(session_end_info=end, version=0))


def _hparams(name: str, content: Any) -> Any:
    return _tensor(f"{HPARAMS}{name}", "hparams", content.SerializeToString(), None)


# Means


def _means(study: Study, outcomes: Sequence[Outcome]) -> Iterator[Any]:
    """The mean of each measure's curve over seeds, with the bounds of its 95 % t interval."""
    for measure in study.measures:
        curves = [dict(outcome.curves.get(measure.tag, [])) for outcome in outcomes]
        steps = sorted({step for curve in curves for step in curve})
        for step in steps:
            of = t_interval(values) if (values := [curve[step] for curve in curves if step in curve]) else None
            if of is None:
                continue
            low, high = (of.low, of.high) if len(values) > 1 else (of.value, of.value)
            yield scalar(measure.tag, step, of.value)
            yield scalar(f"within_95/{measure.tag}/low", step, low)
            yield scalar(f"within_95/{measure.tag}/high", step, high)


def _layout(study: Study) -> Any:
    """Charts of the means with their bands, in the tab of custom scalars."""
    from tensorboard.plugins.custom_scalar import layout_pb2

    charts = []
    for measure in (measure for measure in study.measures if measure.metric != "time"):
        bounds = {"lower": f"within_95/{measure.tag}/low", "upper": f"within_95/{measure.tag}/high"}
        series = layout_pb2.MarginChartContent.Series(value=measure.tag, **bounds)
        charts.append(layout_pb2.Chart(title=measure.metric, margin=layout_pb2.MarginChartContent(series=[series])))
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="means over seeds, 95 %", chart=charts)])
    return _tensor(LAYOUT, "custom_scalars", None, layout.SerializeToString())


# Texts and figures


def _texts(study: Study, table: Table) -> Iterator[Any]:
    texts = {
        "study/question": study.question,
        "study/hypothesis": study.hypothesis,
        "study/command": f"`python -m lit_pref ablate --config {study.file}`",
        "study/result": markdown(table),
    }
    for tag, text in texts.items():
        yield _tensor(tag, "text", None, text.encode("utf-8"))


def _figures(table: Table) -> Iterator[Any]:
    if not any(row.seeds for row in table.rows):
        return
    yield _image("study/effects", partial(draw_effects, table=table), len(effects_of(table)))
    for ranks in table.rungs:
        if ranks.drawable:
            yield _image(f"study/rung_{ranks.share:g}", ranks.draw, max(12, len(ranks.cells)))
    kl = next((measure.name for measure in table.study.measures if measure.tag == "testbed/kl"), "")
    if any(kl in row.means for row in table.rows):
        yield _image("study/front", partial(_draw_front, table=table, kl=kl), 8)


def _draw_front(axes: "Axes", table: Table, kl: str) -> None:
    """Draw the primary measure against the distance from the initial policy."""
    primary = table.study.primary.name
    for row in table.rows:
        if kl in row.means and primary in row.means:
            x, y = row.means[kl], row.means[primary]
            axes.errorbar(x.value, y.value, fmt="o", capsize=2)
            axes.annotate(row.text, (x.value, y.value), textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.set(xlabel="KL from the initial policy, nats", ylabel=primary)


def _image(tag: str, draw: Any, rows: int) -> Any:
    from matplotlib.figure import Figure
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    figure = Figure(figsize=(8, 1.5 + 0.3 * rows), layout="constrained")
    draw(figure.subplots())
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110)
    width, height = (int(110 * inches) for inches in figure.get_size_inches())
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=out.getvalue())
    return Event(summary=Summary(value=[Summary.Value(tag=tag, image=image)]))


# Events


def scalar(tag: str, step: int, number: float) -> Any:
    """An event with a number."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=number)]))


def _tensor(tag: str, plugin: str, content: bytes | None, text: bytes | None) -> Any:
    """An event of a plugin: its content is in the metadata, or a tensor of one string."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING

    data = SummaryMetadata.PluginData(plugin_name=plugin, content=content or b"")
    empty = TensorProto(dtype=DT_FLOAT, float_val=[0.0])
    tensor = empty if text is None else TensorProto(dtype=DT_STRING, string_val=[text])
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=data), tensor=tensor)
    return Event(summary=Summary(value=[value]))


def _copied(trial: Trial) -> Iterator[Any]:
    """The events of a trial, without the HParams of a single run, which would be further columns of the study's."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for file in sorted(trial.run_dir.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime):
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            if not any(value.tag.startswith(HPARAMS) for value in event.summary.value) and not event.file_version:
                yield event


def write_events(folder: Path, events: Iterable[Any]) -> None:
    """Write the events of a folder anew."""
    import time

    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder.mkdir(parents=True, exist_ok=True)
    old = list(folder.glob("events.out.tfevents.*"))
    writer = EventFileWriter(str(folder))
    now = time.time()
    for event in events:
        event.wall_time = event.wall_time or now
        writer.add_event(event)
    writer.close()
    for file in old:
        file.unlink(missing_ok=True)
