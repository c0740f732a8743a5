"""`python -m lit_pref export`: a Hugging Face folder from any checkpoint that training writes."""

from pathlib import Path


def write_folder(ckpt_path: Path, out: Path, merge: bool = True, pairs: int = 8) -> None:
    """Write the policy of a checkpoint as a Hugging Face folder, open it again, and compare weights and scores.

    The folder appears when it is whole and has been compared. Its weights are those of the checkpoint to the last bit
    (merged LoRA: those of the merged model).

    Args:
        ckpt_path: a checkpoint file, or a folder of shards as FSDP2 writes it.
        out: the folder to write; it must not exist, or be an earlier export, which is replaced.
        merge: merge a LoRA adapter into the weights; false writes the adapter alone.
        pairs: how many pairs are scored before and after.
    """
    from lit_pref.run.export import export

    done = export(ckpt_path, out, merge, pairs)
    print(f"wrote {done.folder}")
    print(done.judgement)
    print(f"responses end at {', '.join(done.stops)}")
    print(f"open it with AutoModelForCausalLM and AutoTokenizer: .from_pretrained({str(done.folder)!r})")
