"""Tokens as the pieces of text that they stand for, which side by side are the text."""

from collections.abc import Sequence
from typing import Any, final

_BROKEN = "\ufffd"
"""What decoders write for bytes that are no character."""


@final
class Pieces:
    """Tokens as the pieces of text that they stand for; side by side they are the text.

    White space is kept; where a tokenizer opens every text with a space, so do the pieces. A character that is spread
    over several tokens is that of the last one, and the others are empty. Without a tokenizer tokens are numbers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._known = tokenizer, dict[int, str]()

    def of(self, ids: Sequence[int]) -> list[str]:
        """The pieces of tokens that follow each other."""
        pieces, begin = [self._alone(token) for token in ids], 0
        for i, piece in enumerate(pieces):
            if _BROKEN in piece:
                text, last = self._decode(ids[begin : i + 1]), i + 1 == len(ids) or _BROKEN not in pieces[i + 1]
                pieces[i] = text if last or not text.endswith(_BROKEN) else ""
            begin = i + 1 if pieces[i] else begin
        return pieces

    def name(self, token: int) -> str:
        """A token by itself: its piece of text, or what the vocabulary calls it where that is no text."""
        piece = self._alone(token)
        return self._tokenizer.convert_ids_to_tokens(token) if _BROKEN in piece or not piece else piece

    @property
    def count(self) -> int | None:
        """How many tokens the vocabulary has, where it is known; a network may have embeddings for more."""
        return None if self._tokenizer is None else max(self._tokenizer.get_vocab().values()) + 1

    def _alone(self, token: int) -> str:
        if token not in self._known:
            # decoders take the space off the first token of a text, so it is the second that is whole
            once, twice = self._decode([token]), self._decode([token, token])
            self._known[token] = twice[len(once) :]
        return self._known[token]

    def _decode(self, ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            return "".join(f"⟨{token}⟩" for token in ids)
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
