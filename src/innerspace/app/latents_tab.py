"""The tab on latents: a dictionary searched, one latent's page, and its nearest in the other dictionaries."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component
from starlette.routing import Route

from innerspace.app.exports import routes
from innerspace.app.held import Held
from innerspace.app.latents import Latents, LatentsView
from innerspace.app.latents_drawings import KEY, code, draw, picture
from innerspace.app.studied import DICTIONARIES, LETTERS, WAITING, choices, lacking, studied
from innerspace.app.tab import FAILURES, Shell, Tab, message, panel

_NAMES = {
    "text": "on for a text",
    "density": "how often on",
    "similarity": "like this latent",
    "explanation": "explained by words",
}


class LatentsTab(Tab):
    """Dictionaries, browsed and compared."""

    key = KEY
    title = "Latents"

    def __init__(self, run: Held) -> None:
        self._missing = _missing(run)
        if not self._missing:
            self.latents = Latents(studied(run))

    def missing(self) -> str:
        """Dictionaries."""
        return self._missing

    def routes(self) -> Sequence[Route]:
        """The picture and the code of a view."""
        files = {"picture.svg": partial(picture, self.latents), f"{KEY}.py": partial(code, self.latents)}
        return routes(KEY, LatentsView, files)

    def build(self, shell: Shell) -> None:
        """The search with what it found, and the chosen latent."""
        _Panel(self.latents).build(shell)


def _missing(run: Held) -> str:
    return lacking(run) or ("" if studied(run).dictionaries else DICTIONARIES)


class _Panel:
    """The controls of the tab, in the order in which listeners get their values."""

    def __init__(self, latents: Latents) -> None:
        self._latents = latents

    def build(self, shell: Shell) -> None:
        """Lay everything out."""
        latents = self._latents
        ways = [(_NAMES[way], way) for way in latents.ways]
        what = "Text" if latents.studied.is_text else "Words of an agent's description"
        with gr.Row(elem_classes="bench", equal_height=False):
            with gr.Column(scale=4, min_width=300, elem_classes="asking"):
                self.dictionary = gr.Dropdown(choices(latents.dictionaries), label="Dictionary", elem_id="dictionary")
                self.by = gr.Radio(ways, value="density", label="Search by", elem_id="latents-by")
                self.text = gr.Textbox(
                    label=what, max_length=LETTERS + 200, submit_btn="Search", visible=False, elem_id="latents-text"
                )
                self.density = gr.Number(
                    value=1.0, label="On at about so many percent", minimum=0, elem_id="latents-density"
                )
                self.found = gr.Radio([], label="Found", elem_classes="listed", elem_id="latents-found")
                self.latent = gr.Number(label="Latent", precision=0, elem_id="latent")
            with gr.Column(scale=8, min_width=320):
                self.notes = panel("latents-notes")
                self.shown = panel("latents-shown", WAITING)
        self._wire(shell)

    @property
    def controls(self) -> list[Component]:
        """All controls that say what is sought and shown."""
        return [self.dictionary, self.by, self.text, self.density, self.latent]

    def _wire(self, shell: Shell) -> None:
        every = [*self.controls, self.found, self.shown, self.notes]
        shell.opened(self._restore, every)
        quick: dict[str, Any] = {"show_progress": "minimal", "queue": False, "trigger_mode": "always_last"}
        self.text.submit(self._seek, self.controls, every, api_name="latents", **quick)
        self.density.submit(self._seek, self.controls, every, api_visibility="private", **quick)
        self.dictionary.input(self._seek, self.controls, every, api_visibility="private", **quick)
        self.by.input(self._ask, self.controls, every, api_visibility="private", **quick)
        self.latent.submit(self._look, self.controls, every, api_visibility="private", **quick)
        self.found.input(self._choose, [*self.controls, self.found], every, api_visibility="private", **quick)

    def _view(self, *values: Any) -> LatentsView:
        dictionary, by, text, density, latent = values
        if density is None:
            raise ValueError("type a density in percent, such as 1")
        return LatentsView(dictionary, by, text.strip(), float(density), -1 if latent is None else int(latent))

    def _seek(self, *values: Any) -> tuple[Any, ...]:
        """A new search; the first that it finds is shown."""
        try:
            view = self._view(*values)
            kept = view.latent if view.by == "similarity" else -1
            return self._all(self._latents.opening(replace(view, latent=kept)), "")
        except FAILURES as error:
            return self._nothing(error)

    def _ask(self, *values: Any) -> tuple[Any, ...]:
        """Another way to search: where it needs words, they are waited for."""
        try:
            view = self._view(*values)
            if view.by in ("text", "explanation") and not view.text:
                text = gr.Textbox(visible=True)
                return (
                    *(gr.skip() for _ in range(2)),
                    text,
                    gr.Number(visible=False),
                    *(gr.skip() for _ in range(3)),
                    "",
                )
        except FAILURES as error:
            return self._nothing(error)
        return self._seek(*values)

    def _look(self, *values: Any) -> tuple[Any, ...]:
        """The latent whose number was typed."""
        try:
            view = self._view(*values)
            if view.latent < 0:
                raise ValueError(f"type a latent from 0 to {self._latents.count(view.dictionary) - 1}")
            return self._all(view, "")
        except FAILURES as error:
            return self._nothing(error)

    def _choose(self, *values: Any) -> tuple[Any, ...]:
        *others, found = values
        return self._look(*others[:-1], found)

    def _restore(self, query: str) -> tuple[Any, ...]:
        """What an address asks for; where it cannot be, the page as it opens without one, and why."""
        try:
            return self._all(self._latents.opening(LatentsView.of(query, KEY)), "")
        except FAILURES as error:
            said = message(str(error))
        try:
            return self._all(self._latents.opening(LatentsView()), said)
        except FAILURES as error:
            return self._nothing(error)

    def _all(self, view: LatentsView, notes: str) -> tuple[Any, ...]:
        """Every control as a view has it, what was found, and what is drawn."""
        latents = self._latents
        drawn, found = draw(latents, view), latents.search(view)
        rows = [(f"{one.latent} · {one.words}", one.latent) for one in found]
        chosen = view.latent if view.latent in [one.latent for one in found] else None
        return (
            view.dictionary,
            view.by,
            gr.Textbox(value=view.text, visible=view.by in ("text", "explanation")),
            gr.Number(value=view.density, visible=view.by == "density"),
            gr.Number(value=view.latent, label=f"Latent, 0 to {latents.count(view.dictionary) - 1}"),
            gr.Radio(rows, value=chosen),
            drawn,
            notes,
        )

    def _nothing(self, error: Exception) -> tuple[Any, ...]:
        return (*(gr.skip() for _ in (*self.controls, self.found, self.shown)), message(str(error)))
