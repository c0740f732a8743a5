"""From what the user wrote to a folder on disk: a local path as it is, a hub name by download."""

import os
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from lit_pref.errors import UserError
from lit_pref.hints import nearest_names

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer; the default of from_pretrained makes a lonely machine wait a minute."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
_NOT_WEIGHTS = ["*.json", "*.jinja", "*.txt", "*.model", "*.py"]


def model_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a model: it holds `config.json` and weights in safetensors.

    Args:
        name: a local folder, or a name on the Hugging Face hub (downloaded once, and found offline from then on).
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: for no such folder (with its nearest neighbours), no such model, a hub that cannot be reached, or a
            folder that holds no model of this kind.
    """
    folder = _locate(name, revision, [*_NOT_WEIGHTS, "*.safetensors"])
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"'{name}' holds a LoRA adapter and no config.json: merge it into its base model and give that folder"
            )
        raise UserError(f"'{name}' has no config.json, so it is not a model folder: give the folder that holds it")
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise UserError(
                f"the weights of '{name}' are pickled files, which can run code when read: convert them to safetensors "
                "(load the model with transformers and call save_pretrained)"
            )
        raise UserError(f"'{name}' has a config.json but no weights in safetensors: give a folder with both")
    return folder


def tokenizer_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a tokenizer; see `model_folder`."""
    folder = _locate(name, revision, _NOT_WEIGHTS)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"'{name}' holds no tokenizer: give a folder or hub name that does as `tokenizer`")
    return folder


def _locate(name: str, revision: str | None, patterns: list[str]) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"'{name}' is a file: give the folder that holds config.json and the weights")
    if name.startswith((".", "~", "/")) or name.endswith("/") or name.count("/") > 1 or "\\" in name:
        raise UserError(f"there is no folder '{name}'{_nearest(path)}")
    try:
        reachable = _hub_answers(name, revision)
        # Sub-folders hold the same weights in other formats.
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
    """Asked first and with a time limit of our own: snapshot_download waits without end for a hub that is silent."""
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise
    except Exception:  # whatever the HTTP library of the day raises: no answer is no answer
        return False
    return True


def _nearest(path: Path) -> str:
    """The folders that the user may have meant, as the rest of a sentence."""
    parent = path.parent
    if not parent.is_dir():
        return f" (nor a folder '{parent}')"
    siblings = {p.name: p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")}
    near = nearest_names(path.name, siblings, most=3)
    return f" (nearest: {', '.join(str(siblings[n]) for n in near)})" if near else ""
