"""Finds the folders of models and tokenizers: a local path is used directly, a hub name is downloaded."""

import json
import os
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from lit_pref.errors import UserError
from lit_pref.hints import nearest_names

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer; from_pretrained would wait a minute on a machine without network."""

PLACEHOLDERS = ("FOLDER", "OTHER_FOLDER")
"""What configurations to copy have in place of a model."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of an adapter."""
_NOT_WEIGHTS = ["*.json", "*.jinja", "*.txt", "*.model", "*.py"]


def model_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model, with `config.json` and weights in safetensors.

    Args:
        name: a local folder, or a name on the Hugging Face hub, downloaded once and then available offline.
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: there is no such folder (the message names similar ones) or model, the hub cannot be reached, or the
            folder lacks the configuration or the weights.
    """
    folder = _locate(name, revision, [*_NOT_WEIGHTS, "*.safetensors"])
    if not (folder / "config.json").is_file():
        if (folder / SETTINGS).is_file():
            raise UserError(
                f"'{name}' contains a LoRA adapter, and a whole model is needed here, such as the base of another "
                "adapter: merge it into its base model first"
            )
        raise UserError(f"'{name}' has no config.json, so it is not a model folder: give the folder that contains it")
    if (folder / SETTINGS).is_file():
        raise UserError(
            f"'{name}' contains both a model and a LoRA adapter, of which transformers would train neither: merge the "
            "adapter into the model, or move adapter_config.json and adapter_model.safetensors away"
        )
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise UserError(
                f"the weights of '{name}' are pickled files, which can run code when read: convert them to safetensors "
                "(load the model with transformers and call save_pretrained)"
            )
        raise UserError(f"'{name}' has a config.json but no weights in safetensors: give a folder with both")
    return folder


def adapter_path(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of an adapter; None if there is a whole model, or nothing that can be used."""
    folder = _locate(name, revision, [*_NOT_WEIGHTS, "*.safetensors"])
    return folder if (folder / SETTINGS).is_file() and not (folder / "config.json").is_file() else None


def refuse_damaged_config(folder: Path) -> None:
    """Refuse a `config.json` that is not JSON, of which transformers would say that the tokenizer cannot be loaded.

    Raises:
        UserError: it is not.
    """
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' is damaged or not JSON ({error}): get it again") from error
    if not isinstance(content, dict):
        raise UserError(f"'{file}' holds no settings of a model: get it again")


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder contains a tokenizer."""
    return any((folder / file).is_file() for file in TOKENIZER_FILES)


def tokenizer_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder of a tokenizer; see `model_folder`."""
    folder = _locate(name, revision, _NOT_WEIGHTS)
    if not has_tokenizer(folder):
        raise UserError(f"'{name}' contains no tokenizer: set `tokenizer` to a folder or hub name that does")
    return folder


def refuse_placeholder(name: str) -> None:
    """Refuse a word of a copied configuration that stands for a model.

    Raises:
        UserError: the name is one of `PLACEHOLDERS`, and there is no such folder.
    """
    if name in PLACEHOLDERS and not os.path.isdir(name):
        raise UserError(
            f"'{name}' stands for a model in a configuration to copy: put the model's folder, or its name on the "
            "Hugging Face hub, in its place"
        )


def _locate(name: str, revision: str | None, patterns: list[str]) -> Path:
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, it never raises for an unknown user
    if path.is_dir():
        return path
    refuse_placeholder(name)
    if path.is_file():
        raise UserError(f"'{name}' is a file: give the folder that contains config.json and the weights")
    if name.startswith((".", "~", "/")) or name.endswith("/") or name.count("/") > 1 or "\\" in name:
        raise UserError(f"there is no folder '{name}'{_nearest(path)}")
    try:
        reachable = _hub_answers(name, revision)
        # Sub-folders are not downloaded: they contain the same weights in other formats.
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
                etag_timeout=HUB_TIMEOUT,
                local_files_only=not reachable,
            )
        )
    except GatedRepoError as error:
        raise UserError(f"'{name}' is gated on the Hugging Face hub: accept its terms there and log in") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"'{name}' is neither a folder here{_nearest(path)} nor a model on the hub") from error
    except RevisionNotFoundError as error:
        raise UserError(f"'{name}' has no revision '{revision}' on the Hugging Face hub") from error
    except OSError as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise UserError(
            f"'{name}' is not a folder here{_nearest(path)}, and as a hub name it is not in the local cache and the "
            f"Hugging Face hub cannot be reached{offline}: give a local folder, or connect"
        ) from error


def _hub_answers(name: str, revision: str | None) -> bool:
    """Return whether the hub answers within `HUB_TIMEOUT`; snapshot_download would wait without limit."""
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise
    except Exception:  # the HTTP libraries raise errors of many types; each of them means no answer
        return False
    return True


def _nearest(path: Path) -> str:
    """Suggest folders with similar names, to end a sentence with."""
    parent = path.parent
    if not parent.is_dir():
        return f" (nor a folder '{parent}')"
    siblings = {p.name: p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")}
    near = nearest_names(path.name, siblings, most=3)
    return f" (nearest: {', '.join(str(siblings[n]) for n in near)})" if near else ""


def folder_of_model(name: str) -> str:
    """Return the model that is named: the exported folder of a run if it is a run folder, or else the name itself.

    Raises:
        UserError: it is a run folder without an exported model, or a checkpoint.
    """
    path = Path(name).expanduser()
    if path.suffix == ".ckpt" or (path.parent.name == "checkpoints" and path.exists()):
        raise UserError(
            f"{name} is a checkpoint: write it as a folder first (python -m lit_pref export --ckpt_path {name} --out "
            "FOLDER), and give that"
        )
    if (path / "config.json").exists():
        return name
    if (path / "hf").is_dir():
        return str(path / "hf")
    if not (path / "manifest.json").exists():
        return name
    raise UserError(
        f"{name} is a run folder without hf/, because the run has not ended: resume it, or write one of its "
        f"checkpoints as a folder (python -m lit_pref export --ckpt_path {path / 'checkpoints'}/FILE --out FOLDER)"
    )
