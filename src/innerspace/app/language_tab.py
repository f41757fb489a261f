"""The tab on language: a prompt, a latent or direction or part that is steered or clamped, and what follows."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import gradio as gr
from gradio.components import Component
from starlette.routing import Route

from innerspace.app.exports import routes
from innerspace.app.held import Held
from innerspace.app.language import NEW, TEXTS, Language, LanguageView, Way
from innerspace.app.language_drawings import KEY, code, draw, picture
from innerspace.app.studied import LANGUAGE, LETTERS, choices, lacking, studied
from innerspace.app.tab import FAILURES, Shell, Tab, message, panel


class LanguageTab(Tab):
    """A language model that is read and steered, live."""

    key = KEY
    title = "Language"

    def __init__(self, run: Held) -> None:
        self._missing = _missing(run)
        if not self._missing:
            self.language = Language(studied(run))

    def missing(self) -> str:
        """A language model."""
        return self._missing

    def routes(self) -> Sequence[Route]:
        """The picture and the code of a view."""
        files = {"picture.svg": partial(picture, self.language), f"{KEY}.py": partial(code, self.language)}
        return routes(KEY, LanguageView, files)

    def build(self, shell: Shell) -> None:
        """The prompt with its controls, and below them both continuations."""
        _Panel(self.language).build(shell)


def _missing(run: Held) -> str:
    return lacking(run) or ("" if studied(run).is_text else LANGUAGE)


class _Panel:
    """The controls of the tab, in the order in which listeners get their values."""

    def __init__(self, language: Language) -> None:
        self._language = language

    def build(self, shell: Shell) -> None:
        """Lay everything out."""
        found = self._language.studied
        names = [*choices([*found.dictionaries, *found.partitions]), ("from one text to another", TEXTS)]
        with gr.Column(elem_classes="asking"):
            self.prompt = gr.Textbox(
                label="Prompt", max_lines=6, max_length=LETTERS + 200, submit_btn="Read", elem_id="prompt"
            )
            with gr.Row(elem_classes="choosers"):
                self.what = gr.Dropdown(names, label="Latents, parts or a direction", scale=3, min_width=180)
                self.part = gr.Number(label="Number", precision=0, scale=1, min_width=90, elem_id="language-part")
                self.site = gr.Dropdown([], label="Site", scale=1, min_width=120)
            with gr.Row(elem_classes="choosers", visible=False) as self.texts:
                self.toward = gr.Textbox(label="Toward", min_width=140, max_length=LETTERS)
                self.away = gr.Textbox(label="Away from", min_width=140, max_length=LETTERS)
            with gr.Row(elem_classes="choosers"):
                self.way = gr.Radio(list(get_args(Way)), label="Way", scale=1, min_width=150, elem_id="way")
                self.amount = gr.Slider(-1, 1, 0, label="Amount", scale=3, min_width=200, buttons=[], elem_id="amount")
                self.new = gr.Slider(1, NEW, 24, step=1, label="Tokens that follow", scale=2, min_width=160, buttons=[])
        self.notes = panel("language-notes")
        self.shown = panel("language-shown")
        self._wire(shell)

    @property
    def controls(self) -> list[Component]:
        """All controls."""
        return [
            self.prompt, self.what, self.part, self.site, self.way, self.amount, self.new, self.toward, self.away
        ]  # fmt: skip

    def _wire(self, shell: Shell) -> None:
        drawn, every = [self.shown, self.notes], [*self.controls, self.texts, self.shown, self.notes]
        shell.opened(self._restore, every)
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "trigger_mode": "always_last"}
        self.prompt.submit(self._draw, self.controls, drawn, api_name="language", **quick)
        for box in (self.toward, self.away, self.way, self.part, self.site):
            event = box.submit if isinstance(box, gr.Textbox) else box.input
            event(self._settle, self.controls, every, api_visibility="private", **quick)
        for slider in (self.amount, self.new):
            slider.input(self._draw, self.controls, drawn, api_visibility="private", **quick)
        self.what.input(self._another, self.controls, every, api_visibility="private", **quick)

    def _view(self, *values: Any) -> LanguageView:
        prompt, what, part, site, way, amount, new, toward, away = values
        view = LanguageView(
            prompt=prompt.strip(),
            what=what,
            part=_number(part),
            way=way,
            amount=round(float(amount), 6),
            new=int(new),
            toward=toward.strip() if what == TEXTS else "",
            away=away.strip() if what == TEXTS else "",
        )
        own = self._language.site(replace(view, site=""))
        return replace(view, site="" if site in (own, None) else site)

    def _draw(self, *values: Any) -> tuple[Any, ...]:
        """What the controls ask for, or why it cannot be."""
        try:
            return draw(self._language, self._view(*values)), ""
        except FAILURES as error:
            return gr.skip(), message(str(error))

    def _another(self, *values: Any) -> tuple[Any, ...]:
        """Another decomposition: its own site, and what is most on there."""
        prompt, what, _, _, way, _, new, toward, away = values
        try:
            view = LanguageView(prompt.strip(), what, way=way, new=int(new), toward=toward, away=away)
            view = self._language.opening(replace(view, way="steer"))
            return self._all(view, "")
        except FAILURES as error:
            return self._nothing(error)

    def _settle(self, *values: Any) -> tuple[Any, ...]:
        """Another number, site or way: the amount stays within what is now its reach."""
        try:
            view = self._view(*values)
            reach = self._language.reach(view)
            return self._all(replace(view, amount=min(max(view.amount, -reach), reach)), "")
        except FAILURES as error:
            return self._nothing(error)

    def _restore(self, query: str) -> tuple[Any, ...]:
        """What an address asks for; where it cannot be, the page as it opens without one, and why."""
        try:
            return self._all(self._language.opening(LanguageView.of(query, KEY)), "")
        except FAILURES as error:
            said = message(str(error))
        try:
            return self._all(self._language.opening(LanguageView()), said)
        except FAILURES as error:
            return self._nothing(error)

    def _all(self, view: LanguageView, notes: str) -> tuple[Any, ...]:
        """Every control as a view has it, and what is drawn."""
        drawn, language = draw(self._language, view), self._language
        reach, texts = language.reach(view), view.what == TEXTS
        last = language.count(view) - 1
        return (
            view.prompt,
            view.what,
            gr.Number(value=max(view.part, 0), label=f"Number, 0 to {last}", visible=not texts),
            gr.Dropdown(language.sites(view), value=language.site(view)),
            view.way,
            gr.Slider(minimum=-reach, maximum=reach, step=reach / 100, value=view.amount, label=f"Amount, ± {reach:g}"),
            view.new,
            view.toward,
            view.away,
            gr.Row(visible=texts),
            drawn,
            notes,
        )

    def _nothing(self, error: Exception) -> tuple[Any, ...]:
        return (*(gr.skip() for _ in (*self.controls, self.texts, self.shown)), message(str(error)))


def _number(value: Any) -> int:
    """A number as it was typed.

    Raises:
        ValueError: for an empty box.
    """
    if value is None:
        raise ValueError("type the number of a latent or a part")
    return int(value)
