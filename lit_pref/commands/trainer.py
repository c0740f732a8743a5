"""The commands that call the method of `Run` of the same name: `fit`, `validate`, `test`, `predict` and `check`."""

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
    """Find faults in the data, the objective and the models of a run before training.

    Reads the data of a run as training would and reports, without training, how the sources were read, how many
    records were refused or left out, lengths and truncation, bos and eos tokens, margins and the targets made from
    them, and the accuracy of rules that ignore quality, such as length. All faulty records are counted, even if the run
    would stop at the first one. Nothing is written into the run folder. The exit code is 1 if something must be fixed
    before training.

    Args:
        run: the options of the run.
        model: also build the policy and all references and score up to 64 pairs: compare two passes, both layouts,
            and the first loss with its expected value; estimate the memory of one optimizer step; run a data.selection
            that needs a model. Uses one device of the run's accelerator.
        html: write a page with figures, tables and marked tokens, as one self-contained file.
        json: write the report as JSON.
    """
    config = run.resolve()
    from lit_pref.run.run import check_config

    check_config(config, " ".join(["check", *run.configs]), model, html, json)
