"""Drafts of the next tokens from the text itself (prompt lookup decoding, Saxena 2023).

Texts repeat themselves: names, quotations, code. If the text's last tokens also occur earlier, what followed them there
is a guess at what follows now. Verifying k guesses takes one step of k + 1 rows; greedy decoding accepts those that it
would have chosen anyway (Leviathan et al. 2023, arXiv:2211.17192, at temperature 0).
"""

from __future__ import annotations

import numpy as np


def draft(text: np.ndarray, ngram: int, count: int) -> list[int]:
    """A guess at the `count` tokens that follow text (N,); [] if there is none.

    It is what followed the last earlier occurrence of the text's longest suffix, of at most `ngram` tokens, that
    occurs earlier. If fewer than `count` tokens followed there, they repeat, as in a periodic text.

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
