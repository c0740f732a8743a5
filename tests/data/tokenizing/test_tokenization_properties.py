"""What holds of the tokenisation for any text, length and tokenizer."""

import functools
import json
import random
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.models.encoding import Encoding
from lit_pref.models.special_text import EncodableText
from lit_pref.models.word_tokenizer import save_word_tokenizer

SPECIAL = ["<s>", "</s>", "<unk>", "<|start|>", "<|end|>"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CORPUS = [
    "the cat sat on the mat, and the dog, too; a b c ab bc abc ",
    "naïve café 12 34 — “so” 😀👍🏽 <|end|> </s> <s>\n\n  x",
] * 4
WORDS = ["tin", "zinc", "iron", "gold", "lead"]


def fast(backend, **more):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|start|>", "<|end|>"],
        **more,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def trained(backend, trainer):
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return fast(
        trained(
            backend,
            trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
        )
    )


def metaspace(scheme):
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    # The bytes are ordinary tokens.
    learnt = json.loads(trained(backend, trainer).to_str())
    learnt["added_tokens"] = learnt["added_tokens"][: len(SPECIAL)]
    return fast(Tokenizer.from_str(json.dumps(learnt)))


def word_piece():
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return fast(
        trained(backend, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False))
    )


def greedy_neighbours():
    """Special tokens that swallow the whitespace around them, as masks do."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|end|>", lstrip=True, rstrip=True), "<|start|>"]}
    )
    return tokenizer


def words():
    folder = save_word_tokenizer(Path(tempfile.mkdtemp()), ["<p>", "<b>", "<e>", *WORDS], "<p>", "<b>", "<e>")
    return AutoTokenizer.from_pretrained(folder)


def python_bytes():
    tokenizer = ByT5Tokenizer(eos_token=AddedToken("</s>"), pad_token=AddedToken("<pad>"))
    tokenizer.chat_template = (
        CHAT.replace("{{ bos_token }}", "").replace("<|start|>", "<pad>").replace("<|end|>", "</s>")
    )
    return tokenizer


MAKERS = {
    "byte-level": byte_level,
    "metaspace-first": functools.partial(metaspace, "first"),
    "metaspace-always": functools.partial(metaspace, "always"),
    "word-piece": word_piece,
    "greedy-neighbours": greedy_neighbours,
    "python": python_bytes,
}
made = functools.cache(lambda name: MAKERS[name]())
WHOLE = ["byte-level", "python"]  # decode(encode(text)) is the text

letters = st.text(alphabet=st.sampled_from("abc the,.\n\t—é“😀👍🏽e\u0301\ufffd\U000f0001<>|/s"), max_size=30)
named = st.lists(st.sampled_from([*SPECIAL, "<", "|>", " ", "end", "a"]), max_size=4).map("".join)
texts = st.one_of(letters, st.text(max_size=20), st.tuples(letters, named, letters).map("".join)).filter(
    lambda text: text.strip() and text.encode(errors="ignore").decode() == text
)
bounded = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def read(prompt, chosen, rejected):
    row = Row("pairs.jsonl", 1, {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return row, RowReader().read(row)


def tokenized(tokenizer, prompt, chosen, rejected, **options):
    return Tokenization(tokenizer, **{"max_length": 4096, **options}).tokenize(*read(prompt, chosen, rejected))


def without_begin(tokenizer, ids):
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    assert ids[: len(begin)] == begin
    return ids[len(begin) :]


@pytest.mark.parametrize("name", WHOLE)
@bounded
@given(prompt=texts, chosen=texts, rejected=texts)
def test_what_is_not_cut_decodes_to_its_text_byte_for_byte(name, prompt, chosen, rejected):
    if chosen == rejected:
        return
    tokenizer = made(name)
    pair = tokenized(tokenizer, prompt, chosen, rejected)
    start = without_begin(tokenizer, pair.prompt)
    for response, ids in ((chosen, pair.chosen), (rejected, pair.rejected)):
        assert ids[-1] == tokenizer.eos_token_id
        whole = [*start, *ids[:-1]]
        assert tokenizer.decode(whole, clean_up_tokenization_spaces=False) == prompt + response
        assert not set(tokenizer.all_special_ids) & set(whole)
    names = sum(text.count(special) for text in (prompt, chosen, rejected) for special in tokenizer.all_special_tokens)
    assert pair.special_texts == names
    assert (pair.text.prompt, pair.text.chosen, pair.text.rejected) == (prompt, chosen, rejected)
    assert (pair.prompt_cut, pair.chosen_cut, pair.rejected_cut) == (False, False, False)


@pytest.mark.parametrize("name", WHOLE)
@bounded
@given(system=texts, question=texts, chosen=texts, rejected=texts)
def test_a_conversation_decodes_to_what_the_template_wrote(name, system, question, chosen, rejected):
    if chosen == rejected:
        return
    tokenizer = made(name)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    pair = tokenized(tokenizer, messages, chosen, rejected)
    for response, ids in ((chosen, pair.chosen), (rejected, pair.rejected)):
        turns = [*messages, {"role": "assistant", "content": response}]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        whole = [*without_begin(tokenizer, pair.prompt), *ids]
        assert tokenizer.decode(whole, clean_up_tokenization_spaces=False) == rendered.removeprefix("<s>")
        # The template's own tokens and no others: two of each turn, less the start of the answer's in the response.
        special = [token for token in whole if token in tokenizer.all_special_ids]
        assert len(special) == 6
        assert tokenizer.convert_tokens_to_ids(rendered[-len(tokenizer.convert_ids_to_tokens(ids[-1])) :]) == ids[-1]


@pytest.mark.parametrize("name", MAKERS)
@bounded
@given(
    prompt=texts, chosen=texts, rejected=texts, chats=st.booleans(), length=st.integers(4, 60), part=st.integers(2, 40)
)
def test_lengths_boundary_and_ends(name, prompt, chosen, rejected, chats, length, part):
    if chosen == rejected:
        return
    tokenizer = made(name)
    asked = [{"role": "user", "content": prompt}] if chats else prompt
    try:
        whole = tokenized(tokenizer, asked, chosen, rejected)
        cut = tokenized(tokenizer, asked, chosen, rejected, max_length=length, max_prompt_length=min(part, length - 1))
    except BadRow:
        return
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    assert whole.prompt.count(tokenizer.bos_token_id) == len(begin)
    first = (whole.chosen[0], whole.rejected[0])
    assert first[0] != first[1] or whole.chosen[1:2] or whole.rejected[1:2]
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")}
    assert whole.chosen[-1] in ends and whole.rejected[-1] in ends
    # The prompt's right end, the same for both, and the responses' left.
    kept = without_begin(tokenizer, cut.prompt)
    assert without_begin(tokenizer, whole.prompt)[-len(kept) :] == kept or not kept
    assert cut.prompt_cut == (len(kept) < len(whole.prompt) - len(begin))
    for side in ("chosen", "rejected"):
        ids, uncut = getattr(cut, side), getattr(whole, side)
        assert ids == uncut[: len(ids)] and ids
        assert len(cut.prompt) + len(ids) <= length
        assert getattr(cut, f"{side}_cut") == (len(ids) < len(uncut))
        assert getattr(cut.text, f"{side}_complete") == (ids == uncut)
    assert len(cut.prompt) <= min(part, length - 1)


@pytest.mark.parametrize("name", WHOLE)
@bounded
@given(prompt=texts, chosen=texts, rejected=texts, length=st.integers(4, 40), part=st.integers(2, 30))
def test_kept_texts_are_the_kept_ids_in_whole_characters(name, prompt, chosen, rejected, length, part):
    if chosen == rejected:
        return
    tokenizer = made(name)
    try:
        done = tokenized(
            tokenizer, prompt, chosen, rejected, max_length=length, max_prompt_length=min(part, length - 1)
        )
    except BadRow:
        return
    pair, kept = done, done.text
    assert prompt.endswith(kept.prompt) and chosen.startswith(kept.chosen) and rejected.startswith(kept.rejected)
    for text, complete, ids in (
        (kept.chosen, kept.chosen_complete, pair.chosen),
        (kept.rejected, kept.rejected_complete, pair.rejected),
    ):
        ids = ids[:-1] if complete else ids
        read = tokenizer.decode([*without_begin(tokenizer, pair.prompt), *ids], clean_up_tokenization_spaces=False)
        # At most three bytes of a broken character on either side are not in the text.
        assert read.strip("\ufffd") == (kept.prompt + text).strip("\ufffd")
        assert len(read.encode()) - len((kept.prompt + text).encode()) <= 18


@pytest.mark.parametrize("name", ["metaspace-first", "python"])
@bounded
@given(
    texts=st.lists(st.tuples(texts, texts, texts).filter(lambda t: t[1] != t[2]), min_size=1, max_size=5),
    chats=st.booleans(),
)
def test_many_at_once_are_what_they_are_one_by_one(name, texts, chats):
    items = [read([{"role": "user", "content": p}] if chats else p, c, r) for p, c, r in texts]
    together = Tokenization(made(name), 50, 30).tokenize_all(items)
    for item, found in zip(items, together, strict=True):
        try:
            alone = Tokenization(made(name), 50, 30).tokenize(*item)
        except BadRow as bad:
            assert str(bad) == str(found)
        else:
            assert alone == found


def one_by_one(tokenizer, prompt, responses):
    """The plain road, written down independently: every text by itself, the prefix item by item."""
    lists = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, *(prompt + r for r in responses))
    ]
    start = 0
    while all(start < len(ids) for ids in lists) and len({ids[start] for ids in lists}) == 1:
        start += 1
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return begin + lists[0][:start], [[*ids[start:], tokenizer.eos_token_id] for ids in lists[1:]]


@pytest.mark.parametrize("name", [*MAKERS, "words"])
def test_texts_without_special_names_get_the_ids_of_the_plain_road(name):
    rng = random.Random(0)
    tokenizer = words() if name == "words" else made(name)
    pieces = [f" {word}" for word in WORDS] if name == "words" else [*"abc the,.\n😀é", " cat", " mat", "  "]

    def text():
        return "".join(rng.choices(pieces, k=rng.randint(3, 40))) + pieces[-2]

    rows = [(text(), text(), text()) for _ in range(60)]
    found = Tokenization(tokenizer, 4096).tokenize_all([read(*row) for row in rows])
    for (prompt, chosen, rejected), done in zip(rows, found, strict=True):
        want = one_by_one(tokenizer, prompt, [chosen, rejected])
        assert (done.prompt, [done.chosen, done.rejected]) == want
        # Read as tokens it is the same text, too.
        assert tokenized(tokenizer, prompt, chosen, rejected, special_text="token") == done


@pytest.mark.parametrize("name", MAKERS)
@bounded
@given(texts=st.lists(texts, min_size=1, max_size=4))
def test_special_tokens_told_apart_are_read_as_they_are_where_all_are_tokens(name, texts):
    encoding = Encoding(made(name))
    special = ["<pad>", "</s>"] if name == "python" else ["<s>", "<|start|>", "<|end|>", "</s>"]
    rng = random.Random(len(texts[0]))
    parts = [(rng.choice(special), re.sub("|".join(map(re.escape, encoding.names.names)), "", text)) for text in texts]
    text = "".join(token + part for token, part in parts)
    if len(encoding.names.spans(text)) > len(parts):
        return  # What was left of two names is one.
    told = EncodableText(text, encoding.names.spans(text))
    places = encoding.tokenizer.is_fast
    assert encoding.encode([told], places) == encoding.encode([EncodableText(text)], places)
