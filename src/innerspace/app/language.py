"""A prompt as a language model reads and continues it, without and with a write along a latent, a direction, a part."""

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.app.state import View
from innerspace.app.strips import Change, Strip
from innerspace.app.studied import Studied
from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.base import Decomposition
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import At, Read, Steer, Write, hold, read_parts
from innerspace.jobs.inputs.text import TextData
from innerspace.language.layout import layout
from innerspace.language.text import Text
from innerspace.network.trace import Intervention, Visit
from innerspace.steering_modes import Clamp

Way = Literal["steer", "clamp"]

TEXTS = "texts"
"""Stands for the direction from one typed text to another, in place of a decomposition's name."""

NEW, CHANGES = 60, 8
"""How many tokens may follow, and how many changes are listed either way."""

_KEPT, _LEAST = 64, 1e-4
"""How many continuations are remembered, and the least change of a probability that is listed."""


@dataclass(frozen=True)
class LanguageView(View):
    """A prompt, what is read and written, where, how, and how many tokens follow.

    ``what`` is the name of a dictionary or a partition with its ``part`` (a latent, a subspace), or ``texts``: the
    direction from the last state of ``away`` to that of ``toward``. ``site`` is the decomposition's own
    where it is empty. With ``steer`` an ``amount`` is added, with ``clamp`` it is what is there afterwards.
    """

    prompt: str = ""
    what: str = ""
    part: int = -1
    site: str = ""
    way: str = "steer"
    amount: float = 0.0
    new: int = 24
    toward: str = ""
    away: str = ""


@dataclass(frozen=True, eq=False)
class Told:
    """The prompt with both continuations, read by the unsteered network, and the next token's probabilities.

    ``strip`` are the prompt and what follows unsteered, ``steered`` the same with the write, ``after`` counts the
    tokens of the prompt in both; ``moved`` are the largest gains, then the largest losses.
    """

    view: LanguageView
    site: str
    unit: str
    reach: float
    strip: Strip
    steered: Strip
    after: int
    moved: tuple[Change, ...]


@final
class Language:
    """A run's language model with its decompositions; answers depend on what is asked alone, whoever asks at once."""

    def __init__(self, studied: Studied) -> None:
        assert isinstance(studied.data, TextData)
        self.studied, self._data = studied, studied.data
        self._first = self._example()
        self._lengths, self._clean = dict[str, float](), OrderedDict[Any, tuple[list[int], Tensor]]()

    @property
    def names(self) -> list[str]:
        """What can be read and written."""
        return [*(one.name for one in (*self.studied.dictionaries, *self.studied.partitions)), TEXTS]

    def opening(self, view: LanguageView) -> LanguageView:
        """A view with what it leaves open: words that were held out, the latent that is most on, a write to see."""
        fresh = view == LanguageView()
        view = replace(view, prompt=view.prompt or self._first, what=view.what or self.names[0])
        if view.what == TEXTS:
            return replace(view, toward=view.toward or "happy", away=view.away or "sad")
        if view.part < 0:
            view = replace(view, part=self.most_active(view))
        return replace(view, amount=self.reach(view) / 4) if fresh else view

    def sites(self, view: LanguageView) -> list[str]:
        """Where it can be read and written: everywhere as wide as its own site.

        Raises:
            ValueError: for a decomposition that there is not.
        """
        sites = self.studied.model.sites
        if view.what == TEXTS:
            return [name for name in sites if not name.startswith("heads.")]
        own = sites[self._own(view)]
        return [name for name, site in sites.items() if site.width == own.width and not name.startswith("heads.")]

    def site(self, view: LanguageView) -> str:
        """Where it is read and written.

        Raises:
            ValueError: for a site that there is not, or that is of another width.
        """
        name = self.studied.model.site(view.site).name if view.site else self._own(view)
        if name not in (there := self.sites(view)):
            raise ValueError(f"{view.what} can be read at {', '.join(there)}, not at {name!r}")
        return name

    def count(self, view: LanguageView) -> int:
        """How many latents or parts there are to choose from."""
        return 1 if view.what == TEXTS else len(self.studied.decomposition(view.what).parts)

    def most_active(self, view: LanguageView) -> int:
        """The latent or part that is most on anywhere in the prompt.

        Raises:
            ValueError: for a prompt that cannot be read.
        """
        what, ids = self.studied.decomposition(view.what), self.ids(view.prompt)
        state = self._states(ids, self._own(view))[self._skipped(len(ids)) :]
        return strongest(what, state)

    def ids(self, prompt: str) -> list[int]:
        """The tokens of a prompt, as the network was given its text.

        Raises:
            ValueError: for an empty prompt, one that is too long, or one with a word that is no token.
        """
        return self.studied.typed(prompt).ids[0].tolist()

    @torch.no_grad()
    def tell(self, view: LanguageView) -> Told:
        """The prompt read, continued without and with the write, and how the next token's probabilities change.

        Raises:
            ValueError: for what there is not, or a prompt that cannot be read, saying what is possible.
        """
        self.studied.run.require()
        ids, site = self.ids(view.prompt), self.site(view)
        if not 1 <= view.new <= NEW:
            raise ValueError(f"1 to {NEW} tokens can follow, not {view.new}")
        longest = layout(self.studied.model.module).longest
        if longest is not None and len(ids) + view.new > longest:
            raise ValueError(f"{len(ids)} tokens and {view.new} more do not fit into the network's {longest} positions")
        along, edit = self.along(view), self.edit(view)
        reach = self.reach(view)
        if not math.isfinite(view.amount) or abs(view.amount) > reach * (1 + 1e-6):
            raise ValueError(f"the amount should lie within ± {reach:g}, it is {view.amount:g}")
        clean, before = self._continued(ids, view.new, site, None)
        steered, after = (clean, before) if edit is None else self._continued(ids, view.new, site, edit)
        values = [self._reading(view, along, one, site) for one in (clean, steered)]
        largest = max(float(value.abs().max()) for value in values) or 1.0
        unsteered, written = (
            Strip(tuple(self.studied.pieces.of(one)), tuple(value.tolist()), largest)
            for one, value in zip((clean, steered), values, strict=True)
        )
        moved = tuple(
            Change(self.studied.pieces.name(token), float(before[token]), float(after[token]))
            for token in most_changed(before, after, CHANGES)
        )
        return Told(view, site, self.unit(view), reach, unsteered, written, len(ids), moved)

    def along(self, view: LanguageView) -> Float[Tensor, "d"] | None:
        """The direction that is read and written; None for a subspace.

        Raises:
            ValueError: for a latent that there is not, or texts that differ in nothing.
        """
        if view.what == TEXTS:
            site = self.site(view)
            one, other = (self._states(self.ids(text), site)[-1] for text in (view.toward, view.away))
            if not (one - other).any():
                raise ValueError("the two texts should differ: the direction leads from one to the other")
            return one - other
        what = self.studied.decomposition(view.what)
        if not 0 <= view.part < len(what.parts):
            kind = "part" if isinstance(what, Subspaces) else "latent"
            raise ValueError(f"there is no {kind} {view.part}; {view.what} has 0 to {len(what.parts) - 1}")
        return None if isinstance(what, Subspaces) else what.directions[view.part].detach()

    def edit(self, view: LanguageView) -> Intervention | None:
        """The write, or None where nothing is changed.

        Raises:
            ValueError: for a way that there is not, or as ``along``.
        """
        if view.way not in get_args(Way):
            raise ValueError(f"there is no way {view.way[:80]!r}; there are {', '.join(get_args(Way))}")
        along = self.along(view)
        if view.way == "steer" and view.amount == 0:
            return None
        if along is None:
            rule = scaled(1 + view.amount) if view.way == "steer" else lengthened(view.amount)
            return At(self.studied.where, Write(self.studied.partition(view.what), view.part, rule))
        if view.way == "steer":
            return At(self.studied.where, Steer(along, view.amount))
        if self._is_code(view):
            return At(self.studied.where, hold(self.studied.rowwise(view.what), {view.part: view.amount}))
        return At(self.studied.where, Clamp(along, low=view.amount, high=view.amount))

    def reach(self, view: LanguageView) -> float:
        """How far the amount may go: by a hidden state's length, or three times a part's own."""
        along = self.along(view)
        if along is None and view.way == "steer":
            return 3.0
        site = self.site(view)
        if site not in self._lengths:
            hidden = self._read_batch(self.studied.texts(8)[0], site)
            self._lengths[site] = float(hidden.norm(dim=-1).mean())
        return rounded(self._lengths[site] / (1.0 if along is None else float(along.norm())))

    def unit(self, view: LanguageView) -> str:
        """What the shades stand for."""
        if view.what == TEXTS:
            return "how far a state lies along the direction from one text to the other (1 is their difference)"
        if isinstance(self.studied.decomposition(view.what), Subspaces):
            return f"the share of a state's squared length that lies in part {view.part}"
        if self._is_code(view):
            return f"the activation of latent {view.part}"
        return f"how far a state lies along the direction of latent {view.part}, in its units"

    def _own(self, view: LanguageView) -> str:
        if view.what == TEXTS:
            # the middle of the network, where directions tell most
            stream = [name for name in self.studied.model.sites if name.startswith("resid.")]
            return stream[len(stream) // 2]
        if view.what not in self.names:
            raise ValueError(f"there is nothing called {view.what[:80]!r}; there are {', '.join(self.names)}")
        return self.studied.site_of(view.what)

    def _is_code(self, view: LanguageView) -> bool:
        """Whether a latent is read as its dictionary does: at the site at which it was trained."""
        what = None if view.what == TEXTS else self.studied.decomposition(view.what)
        return isinstance(what, Autoencoder) and self.site(view) == self._own(view)

    def _reading(self, view: LanguageView, along: Tensor | None, ids: list[int], site: str) -> Float[Tensor, "token"]:
        """A number for every token; zero for those that do not count."""
        states = self._states(ids, site)
        if self._is_code(view):
            values = read_parts(self.studied.rowwise(view.what), view.part, states)[:, 0]
        elif along is None:
            values = share_of_part(self.studied.partition(view.what), view.part, states)
        else:
            values = states @ along / along.square().sum()
        skipped = self._skipped(len(ids))
        return torch.cat([torch.zeros(skipped), values[skipped:].float().cpu()])

    def _skipped(self, count: int) -> int:
        return min(self._data.skip, count - 1)

    def _states(self, ids: list[int], site: str) -> Float[Tensor, "token d"]:
        return self._read_batch(Text(torch.tensor([ids])), site)[0]

    @torch.no_grad()
    def _read_batch(self, batch: Text, site: str) -> Float[Tensor, "batch token d"]:
        with self.studied.alone:
            return self.studied.model.run(batch, {site: Read()}, stop=True).hidden[self.studied.model.site(site).name]

    @torch.no_grad()
    def _continued(
        self, ids: list[int], new: int, site: str, edit: Intervention | None
    ) -> tuple[list[int], Float[Tensor, "vocabulary"]]:
        """The tokens with the likeliest ones that follow, and the probabilities of the first of those."""
        key = (tuple(ids), new)
        with self.studied.alone:
            if edit is not None:
                return continued(self.studied, ids, new, {site: edit})
            if key not in self._clean:
                self._clean[key] = continued(self.studied, ids, new, {})
                if len(self._clean) > _KEPT:
                    self._clean.popitem(last=False)
            return self._clean[key]

    def _example(self) -> str:
        """The first words that were held out."""
        ids = self.studied.texts(1)[0].ids[0].tolist()
        special = set(self.studied.tokenizer.all_special_ids)
        return "".join(self.studied.pieces.of([token for token in ids if token not in special][:10])).strip()


@torch.no_grad()
def continued(
    studied: Studied, ids: list[int], new: int, edits: dict[str, Intervention]
) -> tuple[list[int], Float[Tensor, "vocabulary"]]:
    """The tokens with the likeliest that follow one by one, and the first one's probabilities; nothing is drawn."""
    model, tokenizer, batch = studied.model, studied.tokenizer, Text(torch.tensor([ids]))
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    with model.under(edits, batch=batch):
        out: Any = model.module.generate(  # pyright: ignore[reportCallIssue]
            input_ids=batch.ids,
            attention_mask=torch.ones_like(batch.ids),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=padding,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return out.sequences[0].tolist(), out.logits[0][0].float().softmax(-1)


def most_changed(before: Float[Tensor, "n"], after: Float[Tensor, "n"], count: int) -> list[int]:
    """The tokens of the largest gains, the largest first, then those of the largest losses; none that hardly moves."""
    change = (after - before).double()
    order = change.argsort(descending=True, stable=True).tolist()
    gains = [token for token in order[:count] if change[token] > _LEAST]
    return gains + [token for token in reversed(order[-count:]) if change[token] < -_LEAST]


def strongest(what: Decomposition, states: Float[Tensor, "n d"]) -> int:
    """The part whose coordinate, or share of a state's squared length, is largest in any of the states."""
    if isinstance(what, Subspaces):
        shares = [float(share_of_part(what, part, states).max()) for part in range(len(what.parts))]
        return max(range(len(shares)), key=shares.__getitem__)
    return int(what.encode(states).z.amax(0).argmax())


def share_of_part(what: Subspaces, part: int, states: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """‖z_s‖² / ‖x‖²: how much of each state lies in a part, from 0 to 1."""
    return read_parts(what, part, states).square().sum(-1) / states.square().sum(-1).clamp_min(1e-30)


def scaled(factor: float) -> Any:
    """The rule by which coordinates become so many times as large."""

    def rule(z: Int[Tensor, "*positions n"] | Float[Tensor, "*positions n"], visit: Visit) -> Tensor:  # noqa: ARG001
        return factor * z

    return rule


def lengthened(length: float) -> Any:
    """The rule by which coordinates keep their direction and get a length; what is zero stays."""

    def rule(z: Float[Tensor, "*positions n"], visit: Visit) -> Tensor:  # noqa: ARG001
        return z * (length / z.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    return rule


def rounded(value: float) -> float:
    """The next number of the form 1, 2 or 5 times a power of ten that is at least so large."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))
