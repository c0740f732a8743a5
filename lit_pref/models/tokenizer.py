"""A tokenizer opened from a folder, or trained on the data for small models with random weights."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_pref.cache import build_once, cache_folder
from lit_pref.errors import UserError
from lit_pref.models.folder import refuse_damaged_config
from lit_pref.models.loading import first_line

SPECIAL = ("<pad>", "<bos>", "<eos>")
SMALLEST = 256 + len(SPECIAL)


@dataclass
class Corpus:
    """Texts to train a tokenizer on.

    Args:
        key: hash of the content, which names the tokenizer in the cache.
        texts: returns the texts in a fixed order; called only if the tokenizer is not in the cache yet.
    """

    key: str
    texts: Callable[[], Iterable[str]]


def train_tokenizer(corpus: Corpus, vocabulary: int) -> Path:
    """Train a byte-level BPE tokenizer on `corpus`, once, and return its folder in the cache.

    Every byte is a token, so every text can be encoded; `<bos>` precedes every text; the result is deterministic and
    does not depend on the number of threads.

    Args:
        corpus: the texts.
        vocabulary: number of tokens, including the special ones; a small corpus may give fewer.

    Raises:
        UserError: the vocabulary is smaller than 259 tokens (all bytes and three special ones).
    """
    if vocabulary < SMALLEST:
        raise UserError(
            f"policy.vocabulary is {vocabulary}, and it must be at least {SMALLEST}: all bytes and the special tokens"
        )
    key = hashlib.sha256(f"byte-level BPE 1|{corpus.key}|{vocabulary}".encode()).hexdigest()

    def build(folder: Path) -> None:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus.texts(), trainer)
        pad, bos, eos = SPECIAL
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
        fast.save_pretrained(folder)

    return build_once(cache_folder("tokenizers", key), build)


def open_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder, whose eos token also pads if it has no padding token.

    Padding is masked out and never predicted, so neither a new token nor a new row of the embeddings is needed.

    Args:
        folder: the folder.
        trust_remote_code: run code that comes with it.

    Raises:
        UserError: it cannot be loaded, or it has no eos token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare ones for a damaged file
        refuse_damaged_config(folder)
        raise UserError(f"the tokenizer in '{folder}' cannot be loaded: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in '{folder}' has no end token (eos_token): set it in its configuration")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
