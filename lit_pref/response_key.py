"""The key of a response in the reference store and in comparisons of texts."""

import hashlib
from collections.abc import Sequence

import numpy


def response_key(prompt: Sequence[int], response: Sequence[int]) -> bytes:
    """Return 16 bytes that identify a response to a prompt, computed from the ids of both.

    >>> response_key([5, 6], [7]) == response_key([5, 6], [7]), response_key([5, 6], [7]) == response_key([5], [6, 7])
    (True, False)
    """
    ids = numpy.array([len(prompt), *prompt, *response], dtype="<i4")
    return hashlib.sha256(ids.tobytes()).digest()[:16]
