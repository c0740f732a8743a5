"""A tokenizer whose tokens are the words of a closed language."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

_SPACE = "▁"


def save_word_tokenizer(folder: Path, words: Sequence[str], pad: str, begin: str, end: str) -> Path:
    """Write a tokenizer folder in which word number i has the id i; `AutoTokenizer.from_pretrained` opens it.

    A token stands for a word and the space *before* it, so that texts whose every word follows a space join by plain
    concatenation and decode(encode(text)) == text. A first word without its space is read as if it had one. There is no
    unknown token: a word outside the language is an error of the `tokenizers` library.

    Args:
        words: the vocabulary in the order of the ids; contains the three special tokens.
        pad, begin, end: the special tokens, written without a space. None is added by the tokenizer itself.

    >>> import tempfile
    >>> from transformers import AutoTokenizer
    >>> folder = save_word_tokenizer(Path(tempfile.mkdtemp()), "<p> <b> <e> tin zinc".split(), "<p>", "<b>", "<e>")
    >>> tokenizer = AutoTokenizer.from_pretrained(folder)
    >>> tokenizer(" zinc tin")["input_ids"], tokenizer.decode([4, 3, 2])
    ([4, 3], ' zinc tin<e>')
    """
    special = (pad, begin, end)
    if not set(special) <= set(words) or len(set(words)) < len(words):
        raise ValueError("the words must differ and contain the three special tokens")
    ids = {word if word in special else _SPACE + word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme="never")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    return folder
