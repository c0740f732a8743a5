"""`python -m lit_pref export`: a Hugging Face folder from any checkpoint that training writes."""

import os
from pathlib import Path

from lit_pref.errors import UsageError, UserError
from lit_pref.hints import did_you_mean


def write_folder(
    ckpt_path: Path, out: Path, merge: bool = True, pairs: int = 8, trust_remote_code: bool = False
) -> None:
    """Write the policy of a checkpoint as a Hugging Face folder, open it again, and compare weights and scores.

    The folder appears only once it is complete and the comparison has passed. Its weights equal those of the checkpoint
    to the last bit (with merged LoRA, those of the merged model).

    Args:
        ckpt_path: a checkpoint file, or a folder of shards as FSDP2 writes it.
        out: the folder to write; it must not exist, or be an earlier export, which is replaced.
        merge: merge a LoRA adapter into the weights; false writes the adapter alone.
        pairs: the number of pairs whose scores are compared.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: the checkpoint does not exist.
        UsageError: it is `last`.
    """
    if str(ckpt_path) == "last" and not ckpt_path.exists():
        raise UsageError(
            "export knows no run folder in which to look for `last`: name the file, such as "
            "--ckpt_path runs/NAME/checkpoints/step=00000500.ckpt"
        )
    if not ckpt_path.exists():
        siblings = [path.name for path in ckpt_path.parent.glob("*.ckpt")]
        hint = did_you_mean(ckpt_path.name, siblings) or "; the checkpoints of a run are in RUN_DIR/checkpoints"
        raise UserError(f"checkpoint {ckpt_path} does not exist{hint}")
    from lit_pref.callbacks.termination import ending_on_sigterm
    from lit_pref.printing import say
    from lit_pref.run.export import export
    from lit_pref.run.lightning_messages import hide_hints

    hide_hints()
    out = Path(os.path.expanduser(out))  # a shell leaves ~ after = as it is
    with ending_on_sigterm(words=f"ended by SIGTERM before {out} was complete: nothing of it is left; export again"):
        done = export(ckpt_path, out, merge, pairs, trust_remote_code)
    say(f"wrote {done.folder}")
    say(done.judgement)
    if not done.reward:
        say(f"responses end at {', '.join(done.stops)}")
    kind = "AutoModelForSequenceClassification" if done.reward else "AutoModelForCausalLM"
    say(f"open it with {kind} and AutoTokenizer: .from_pretrained({str(done.folder)!r})")
