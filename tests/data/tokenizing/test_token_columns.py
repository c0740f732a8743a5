"""Values of character spans as values of tokens."""

import pytest

from lit_pref.data.tokenizing.token_columns import token_values


@pytest.mark.parametrize(
    "spans, tokens, text, skipped, values",
    [
        ([(0, 1, 1), (1, 3, 2)], [(0, 3)], (0, 3), 0, [2]),  # most of its characters
        ([(2, 4, 2), (0, 2, 1)], [(0, 4)], (0, 4), 0, [1]),  # the earliest of two that cover as much
        ([(0, 3, 1), (1, 3, 2)], [(0, 2), (2, 3)], (0, 3), 0, [1, 1]),  # one over the other
        ([(1, 2, 1)], [(0, 1), (1, 2), (2, 3)], (0, 3), 0, [0, 1, 0]),
        ([(0, 9, 1)], [(0, 5), (5, 8), (8, 12), (12, 13)], (4, 9), 0, [1, 1, 1, 0]),  # the response's own characters
        ([(0, 2, 1), (2, 3, 2)], [(5, 6), (6, 7)], (5, 7), 1, [1, 2]),  # its first character was trimmed
        ([(0, 1, 1)], [(0, 1), (0, 1), (0, 1), (1, 2)], (0, 2), 0, [1, 1, 1, 0]),  # several tokens a character
        ([(0, 1, 1), (1, 3, 2)], [(1, 3)], (0, 3), 0, [2]),
        ([(1, 2, 1)], [(0, 1), (2, 3)], (0, 3), 0, [0, 1]),  # the space before a word is its token's
        ([(1, 3, 1)], [(0, 1), (3, 3), (3, 4)], (0, 4), 0, [0, 1, 0]),  # and a token of spaces has its own
        ([(1, 1, 1), (5, 9, 1)], [(0, 1), (1, 2)], (0, 2), 0, [0, 0]),  # of nothing, and beyond the end
        ([], [(0, 1)], (0, 1), 0, [0]),
        ([(0, 1, 1)], [], (0, 1), 0, []),
    ],
)
def test_a_token_takes_the_value_of_the_span_that_covers_most_of_it(spans, tokens, text, skipped, values):
    assert token_values(spans, tokens, text, skipped) == values
