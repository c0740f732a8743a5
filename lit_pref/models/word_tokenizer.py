"""A tokenizer whose tokens are the words of a closed language."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

_SPACE = "▁"


def save_word_tokenizer(folder: Path, words: Sequence[str], pad: str, bos: str, eos: str) -> Path:
    """Write the folder of a tokenizer in which word i has id i, for `AutoTokenizer.from_pretrained`.

    A token is a word with the space *before* it, so that texts in which every word follows a space can be concatenated,
    and decode(encode(text)) == text. A first word without a space is encoded as if it had one. There is no unknown
    token: the `tokenizers` library raises an error for other words.

    Args:
        folder: the folder to write.
        words: the vocabulary in the order of the ids, including the three special tokens.
        pad, bos, eos: the special tokens, without a space. The tokenizer adds none of them by itself.

    >>> import tempfile
    >>> from transformers import AutoTokenizer
    >>> folder = save_word_tokenizer(Path(tempfile.mkdtemp()), "<p> <b> <e> tin zinc".split(), "<p>", "<b>", "<e>")
    >>> tokenizer = AutoTokenizer.from_pretrained(folder)
    >>> tokenizer(" zinc tin")["input_ids"], tokenizer.decode([4, 3, 2])
    ([4, 3], ' zinc tin<e>')
    """
    special = (pad, bos, eos)
    if not set(special) <= set(words) or len(set(words)) < len(words):
        raise ValueError("the words must be distinct and include the three special tokens")
    ids = {word if word in special else _SPACE + word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme="never")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    return folder
