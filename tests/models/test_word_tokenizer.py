import pytest
from transformers import AutoTokenizer

from lit_pref.models.word_tokenizer import save_word_tokenizer
from lit_pref.testbed.world import BOS, EOS, PAD, VOCABULARY

PROMPT, RESPONSE = " 4 metal down lead plain 5 6 :", " zinc silver . total 11 ."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(
        save_word_tokenizer(tmp_path_factory.mktemp("words"), VOCABULARY, PAD, BOS, EOS)
    )


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def test_ids_are_the_numbers_of_the_words(tokenizer):
    assert len(tokenizer) == 104
    assert ids(tokenizer, RESPONSE) == [VOCABULARY.index(word) for word in RESPONSE.split()]
    for number, word in enumerate(VOCABULARY):
        assert tokenizer.decode([number]).strip() == word


@pytest.mark.parametrize("text", [PROMPT, RESPONSE, PROMPT + RESPONSE])
def test_text_survives_encoding(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_prompt_and_response_join_by_concatenation(tokenizer):
    assert ids(tokenizer, PROMPT + RESPONSE) == ids(tokenizer, PROMPT) + ids(tokenizer, RESPONSE)


def test_every_sequence_of_ids_survives_decoding(tokenizer):
    every = [*range(104), *reversed(range(104))]
    assert ids(tokenizer, tokenizer.decode(every)) == every


def test_a_prompt_typed_without_its_first_space_is_the_same(tokenizer):
    assert ids(tokenizer, PROMPT.strip()) == ids(tokenizer, PROMPT)


def test_only_the_three_special_tokens_are_special_and_none_is_added(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 3)
    assert set(tokenizer.all_special_tokens) == {PAD, BOS, EOS}
    assert ids(tokenizer, "<bos> zinc<eos>") == [1, VOCABULARY.index("zinc"), 3]
    assert tokenizer.decode([1, 2, VOCABULARY.index("zinc"), 3], skip_special_tokens=True) == " : zinc"


def test_an_unknown_word_is_an_error(tokenizer):
    with pytest.raises(Exception, match="UNK"):
        ids(tokenizer, " zinc hello")


@pytest.mark.parametrize("words", [["<p>", "<b>", "a"], ["<p>", "<b>", "<e>", "a", "a"]])
def test_a_vocabulary_without_its_special_tokens_or_with_a_word_twice_is_refused(tmp_path, words):
    with pytest.raises(ValueError, match="must be distinct and include"):
        save_word_tokenizer(tmp_path, words, "<p>", "<b>", "<e>")
