"""Drafts of the next tokens from the text itself (prompt lookup decoding, Saxena 2023).

Texts repeat themselves: names, quotations, code. If the text's last tokens stand in an earlier place too, what
followed there is a guess at what follows here. Checking k guesses costs one step of k + 1 rows, and greedy decoding
keeps them as far as it would have chosen them anyway (Leviathan et al. 2023, arXiv:2211.17192, at temperature 0).
"""

from __future__ import annotations

import numpy as np


def draft(text: np.ndarray, ngram: int, count: int) -> list[int]:
    """The `count` tokens that may follow text (N,), [] without a guess.

    The longest end of the text, of at most `ngram` tokens, that occurs earlier decides; of several places the
    last. Where the earlier place comes up to the end, the guess goes on with itself: the text is periodic.

    >>> draft(np.array([1, 2, 3, 9, 2, 3]), ngram=3, count=2)
    [9, 2]
    >>> draft(np.array([7, 4, 5, 4, 5]), ngram=3, count=5)
    [4, 5, 4, 5, 4]
    """
    places = np.flatnonzero(text[:-1] == text[-1])  # where the earlier occurrences end
    if not places.size:
        return []
    for before in range(1, ngram):
        longer = places[places >= before]
        longer = longer[text[longer - before] == text[-1 - before]]
        if not longer.size:
            break
        places = longer
    return np.resize(text[places[-1] + 1 :], count).tolist()
