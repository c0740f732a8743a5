"""Where the responses of prepared pairs lie in the store of a reference, made once for each data set and tokenizer."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_pref.cache import build_once, cache_folder
from lit_pref.models.encoding import Encoding, tokenizer_state
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.references.own_tokenizer import ids_of
from lit_pref.references.store import ADDRESS
from lit_pref.response_key import response_key

FORMAT = 2  # raise it when the same pairs would get other addresses
NOWHERE = b""
TABLE = np.dtype([("keys", ADDRESS, 2), ("addresses", ADDRESS, 2), ("tokens", np.int32)])
"""A row a pair: what its responses are looked up by and where they lie (chosen, rejected), and its longest row.

A key is the address itself where the reference reads the policy's tokens, else it comes from the text that was kept.
The rejected response of one-sided data is NOWHERE.
"""


class Pairs(Protocol):
    """Prepared pairs of one split."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PreferencePair: ...


class ExtraResponses:
    """The extra responses of a split, as one-sided pairs: for the store they are pairs like others.

    Args:
        pairs: each with an extra response.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    @property
    def fingerprint(self) -> str:
        return f"{self._pairs.fingerprint} third"

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int, /) -> PreferencePair:
        return self._pairs[index].of_extra_response()


def address_table(pairs: Pairs, tokenizer: Any, say: Callable[[str], None] = print) -> NDArray[Any]:
    """The (pairs,) TABLE of a split, from the cache where it was made before.

    Args:
        pairs: of the split.
        tokenizer: the reference's own; None where it reads the policy's tokens.
        say: is told before work that takes long.

    Raises:
        UserError: a conversation that the reference's chat template refuses.
    """
    state: Any = None
    if tokenizer is not None:
        special = [tokenizer.bos_token_id, tokenizer.eos_token_id, sorted(tokenizer.all_special_tokens)]
        state = [tokenizer_state(tokenizer), tokenizer.chat_template, special]
    key = hashlib.sha256(json.dumps([FORMAT, pairs.fingerprint, state], sort_keys=True).encode()).hexdigest()

    def build(folder: Path) -> None:
        if tokenizer is not None:
            say(f"{len(pairs)} pairs are read with the tokenizer of {tokenizer.name_or_path}, once")
        rows = np.fromiter(_rows(pairs, tokenizer), TABLE, len(pairs))
        np.save(folder / "addresses.npy", rows)

    folder = build_once(cache_folder("addresses", key[:32]), build)
    return np.load(folder / "addresses.npy", mmap_mode="r")


def _rows(pairs: Pairs, tokenizer: Any) -> Iterator[Any]:
    encoding = None if tokenizer is None else Encoding(tokenizer)
    for k in range(len(pairs)):
        pair = pairs[k] if encoding is None else in_own_ids(pairs[k], encoding)
        rejected = pair.rejected
        addresses = (
            response_key(pair.prompt, pair.chosen),
            NOWHERE if rejected is None else response_key(pair.prompt, rejected),
        )
        tokens = len(pair.prompt) + max(len(pair.chosen), len(rejected or ()))
        yield addresses if encoding is None else text_keys(pair.text), addresses, tokens


def in_own_ids(pair: PreferencePair, encoding: Encoding) -> PreferencePair:
    """The pair in the ids of another tokenizer, from the text that the policy kept."""
    prompt, chosen, rejected = ids_of(pair.text, encoding)
    return replace(pair, prompt=prompt, chosen=chosen, rejected=None if pair.rejected is None else rejected)


def text_keys(text: TruncatedText) -> tuple[bytes, bytes]:
    """What the two responses of a kept text are looked up by.

    Of the whole pair: where a prompt ends in another tokenizer's ids is decided by both responses.
    """
    parts = [text.prompt, text.chosen, text.rejected, text.chosen_complete, text.rejected_complete]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return digest[:16], NOWHERE if text.rejected is None else digest[16:]
