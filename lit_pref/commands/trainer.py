"""The commands that do what a method of `Run` does: `fit`, `validate`, `test`, `predict` and `check`."""

from pathlib import Path

from lit_pref.commands.run_options import RunOptions


def fit(run: RunOptions) -> None:
    """Train a policy, and export the last checkpoint as a Hugging Face folder."""
    run.build().fit()


def validate(run: RunOptions) -> None:
    """Print metrics on the held-out pairs, and write one record per pair into the run folder.

    --ckpt_path FILE takes the weights of a checkpoint, --ckpt_path last those of the newest one in the run folder;
    without it the policy is as it was before training.
    """
    run.build().validate()


def test(run: RunOptions) -> None:
    """Do the same as `validate`, logged as test.

    --ckpt_path FILE takes the weights of a checkpoint, --ckpt_path last those of the newest one in the run folder.
    """
    run.build().test()


def predict(run: RunOptions) -> None:
    """Write one record per held-out pair as Parquet into the run folder.

    --ckpt_path FILE takes the weights of a checkpoint, --ckpt_path last those of the newest one in the run folder.
    """
    run.build().predict()


def check(run: RunOptions, model: bool = False, html: Path | None = None, json: Path | None = None) -> None:
    """Look at the data and models of a run without training.

    Reads the data as the run would and reports: how the sources were read, what became of their rows, lengths and
    truncation, bos and eos tokens, margins and what the objective makes of them, and how far rules get that know
    nothing of quality. Faulty rows are all counted, also where the run would stop at the first. Nothing is written
    into the run folder. Exit code 1 means that something is wrong enough to stop.

    Args:
        run: the options of the run.
        model: also build the policy, score up to 64 pairs with it and with all references, and compare: twice the
            same, both layouts, the first loss with its expected value; estimate the memory of one step; choose by
            data.selection where that reads a model. Runs on one device of the run's accelerator.
        html: write a page with figures, tables and marked tokens, one file that needs nothing beside it.
        json: write the whole report for machines.
    """
    config = run.resolve()
    from lit_pref.run import check_config

    check_config(config, " ".join(["check", *run.configs]), model, html, json)
