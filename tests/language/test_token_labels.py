"""Labels of tokens that their text tells: by hand, for words of several pieces and quotations."""

import torch

from innerspace.language.pieces import Pieces
from innerspace.language.token_labels import token_labels

WORDS = [
    "Once",
    " she",
    " s",
    "aid",
    ",",
    ' "',
    "Hi",
    "!",
    '"',
    " The",
    " his",
    "tory",
    " was",
    " its",
    ".",
    "\n",
    "Tim",
]


class Tokenizer:
    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(WORDS[i] for i in ids)


def test_every_label_of_a_line() -> None:
    found = token_labels(torch.arange(len(WORDS))[None], Pieces(Tokenizer()))
    named = {name: [WORDS[i] for i in ids[0].nonzero().flatten().tolist()] for name, ids in found.items()}
    assert named == {
        "capitalized": ["Once", "Hi", " The", "Tim"],
        "sentence start": ["Once", " The", "Tim"],
        # the beginning of a longer word is none
        "pronoun": [" she", " its"],
        "quotation": [' "', "Hi", "!"],
    }


def test_rows_are_read_each_by_itself() -> None:
    ids = torch.tensor([[5, 6, 7], [6, 7, 8]])
    found = token_labels(ids, Pieces(Tokenizer()))
    assert found["quotation"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert found["sentence start"].tolist() == [[0, 1, 0], [1, 0, 0]]
