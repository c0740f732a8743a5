"""The ends of long texts are not encoded, and the ids before them are those of the whole texts."""

import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_pref.models.beginnings import _LLAMA3, Beginnings
from lit_pref.models.encoding import Encoding
from lit_pref.models.special_text import EncodableText

PIECES = [
    "the",
    "cat",
    "don't",
    "I'll",
    " ",
    "  ",
    " ",
    "\n",
    "\t",
    "12",
    "3456",
    "...",
    ",",
    "é",
    "😀",
    "ß",
    "日本",
    "A",
    "e\u0301",
]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=True)
LLAMA3 = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
WORDS = pre_tokenizers.WhitespaceSplit()
REPLACE = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
MAKERS = {
    "digits": (None, pre_tokenizers.Sequence([DIGITS, GPT2])),
    "llama3": (normalizers.NFC(), pre_tokenizers.Sequence([LLAMA3, BYTES])),
    "metaspace": (None, pre_tokenizers.Metaspace(split=True)),
    "replaced": (REPLACE, pre_tokenizers.Metaspace(split=True)),
    "words": (None, WORDS),
    # These do not split there, so that tokens reach over blanks:
    "replaced words": (REPLACE, WORDS),
    "bytes": (None, BYTES),
    "bytes and words": (None, pre_tokenizers.Sequence([BYTES, WORDS])),
    "bytes and llama3": (None, pre_tokenizers.Sequence([BYTES, LLAMA3])),
    "unsplit": (None, pre_tokenizers.Metaspace(split=False)),
    "unknown": (None, pre_tokenizers.Split(Regex(r"\w+ "), "isolated")),
}
SAFE = ("digits", "llama3", "metaspace", "replaced", "words")


def text(rng, length):
    return "".join(rng.choice(PIECES) for _ in range(length))


def made(name, vocabulary=400):
    normalizer, pre_tokenizer = MAKERS[name]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=name == "metaspace"))
    if normalizer:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    backend.train_from_iterator([text(random.Random(k), 400) for k in range(30)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def watched(monkeypatch):
    """The lengths of the texts that are encoded."""
    lengths = []
    encode = Encoding.encode

    def watching(self, texts, spans=False):
        lengths.extend(len(text.text) for text in texts)
        return encode(self, texts, spans)

    monkeypatch.setattr(Encoding, "encode", watching)
    return lengths


@pytest.mark.parametrize("name", MAKERS)
def test_the_first_ids_are_those_of_the_whole_text(name, watched):
    encoding = Encoding(made(name))
    beginnings = Beginnings(encoding)
    cut = 0
    for seed in range(60):
        rng = random.Random(seed)
        whole = encoding.encodable(text(rng, 2000))
        needed = rng.choice([20, 40, 80])
        del watched[:]
        found = beginnings.encode([whole], [needed])[0].ids
        cut += watched[-1] < len(whole.text)
        want = encoding.encode([whole])[0].ids
        assert found == want[: len(found)] and (found == want or len(found) > needed)
    assert cut > 40 if name in SAFE else cut == 0


def test_a_vocabulary_without_tokens_over_blanks_needs_no_split(watched):
    alphabet = {
        token: k for k, token in enumerate(["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    for merges, is_cut in (([("t", "h"), ("Ġ", "c")], True), ([("e", "Ġ")], False)):
        vocabulary = alphabet | {"".join(merge): len(alphabet) + k for k, merge in enumerate(merges)}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        backend.pre_tokenizer = BYTES
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
        whole = (encoding := Encoding(tokenizer)).encodable("the cat " * 500)
        del watched[:]
        found = Beginnings(encoding).encode([whole], [20])[0].ids
        assert (watched[0] < len(whole.text)) == is_cut
        assert found == encoding.encode([whole])[0].ids[: len(found)]


def test_a_text_of_long_tokens_is_encoded_whole(watched):
    encoding = Encoding(made("digits"))
    whole = encoding.encodable("the cat " * 500)
    needed = len(encoding.encode([whole])[0].ids) - 5
    found = Beginnings(encoding).encode([whole], [needed])[0]
    assert found == encoding.encode([whole])[0]


def test_a_name_of_a_special_token_in_the_end_is_not_passed_over(watched):
    encoding = Encoding(made("digits"))
    for end, special, is_cut in (("", (), True), (" </s>", (), False), (" </s>", None, True)):
        whole = EncodableText("the cat " * 500 + end, special)
        del watched[:]
        Beginnings(encoding).encode([whole], [20])
        assert (watched[0] < len(whole.text)) == is_cut
    template = EncodableText("the cat " * 500 + "</s>", ((4000, 4004),))
    del watched[:]
    Beginnings(encoding).encode([template], [20])
    assert watched[0] < 300
