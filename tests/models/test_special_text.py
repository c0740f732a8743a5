"""Names of special tokens in texts."""

from types import SimpleNamespace

import pytest

from lit_pref.models.special_text import PRIVATE, EncodableText, SpecialNames, unused

# As much of a tokenizer as says what its special tokens are called.
NAMES = SpecialNames(SimpleNamespace(added_tokens_decoder={}, all_special_tokens=["<s>", "<s>x", "</s>"]))


def test_the_longest_name_is_found_first():
    assert NAMES.first("a <s>xy") == "<s>x"
    assert NAMES.first("a < s>") is None
    assert NAMES.spans("<s>x</s><s>") == ((0, 4), (4, 8), (8, 11))


def test_names_between_marks_are_characters_and_others_are_tokens():
    marked = "<s>" + NAMES.marked("a</s>b<s>", "«»") + "</s>"
    assert marked == "<s>a«</s>»b«<s>»</s>"
    assert NAMES.unmarked(marked, "«»") == EncodableText("<s>a</s>b<s></s>", ((0, 3), (12, 16)))


def test_a_lone_mark_goes_and_what_is_left_and_right_of_it_makes_no_name():
    assert NAMES.unmarked("a»b«<s>»<«s>", "«»") == EncodableText("ab<s><s>", ())


def test_the_first_characters_of_a_text_keep_the_tokens_among_them():
    written = EncodableText("<s>ab</s>c", ((0, 3), (5, 9)))
    assert written.upto(5) == EncodableText("<s>ab", ((0, 3),))
    assert EncodableText("<s>ab").upto(4) == EncodableText("<s>a")


def test_private_characters_that_are_used_are_passed_over():
    first = PRIVATE.start
    assert unused(["ab", chr(first + 1)], 1) == chr(first)
    assert unused(["ab", chr(first + 1)], 2) == chr(first + 2) + chr(first + 3)
    with pytest.raises(ValueError, match="every private-use character"):
        unused(["".join(map(chr, PRIVATE[::2]))], 2)
