"""Labels of tokens that their text tells by itself: capitals, the start of a sentence, pronouns, quotations."""

import re

import torch
from jaxtyping import Int
from torch import Tensor

from innerspace.language.pieces import Pieces

_WORDS = "i you he she it we they me him her us them my your his its our their"
_PRONOUNS = frozenset(_WORDS.split(" "))
_ENDS = (".", "!", "?")


def token_labels(ids: Int[Tensor, "batch token"], pieces: Pieces) -> dict[str, Int[Tensor, "batch token"]]:
    """By label 1 for yes and 0 for no, of every token, from its own row alone.

    ``capitalized``: the piece begins with a capital. ``sentence start``: it begins the first word after ``. ! ?``,
    or of the row's text. ``pronoun``: it is, or ends, a personal or possessive pronoun. ``quotation``: an odd number of
    quotation marks was seen up to and with it, so that a row that begins inside of one is read the other way.
    """
    rows = [_row(pieces.of(line)) for line in ids.tolist()]
    names = ("capitalized", "sentence start", "pronoun", "quotation")
    return {name: torch.tensor([row[i] for row in rows]) for i, name in enumerate(names)}


def _row(pieces: list[str]) -> tuple[list[int], ...]:
    capital, start, pronoun, quoted = (list[int]() for _ in range(4))
    text, marks, begins = "", 0, True
    for i, piece in enumerate(pieces):
        bare = piece.strip().lstrip('"“')
        capital.append(int(bare[:1].isupper()))
        start.append(int(begins and bare[:1].isalnum()))
        if any(letter.isalnum() for letter in bare):
            begins = False
        if bare.rstrip('"”').endswith(_ENDS):
            begins = True
        marks += piece.count('"')
        quoted.append(marks % 2)
        text = (text + piece)[-40:]
        follows = pieces[i + 1][:1] if i + 1 < len(pieces) else " "
        word = re.search(r"[A-Za-z']+$", text)
        whole = word is not None and bare != "" and not follows.isalpha()
        pronoun.append(int(whole and word is not None and word[0].lower() in _PRONOUNS))
    return capital, start, pronoun, quoted
