"""The tab on subspaces: a part and a query, how close is close, the states that are, and the part exchanged."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component
from starlette.routing import Route

from innerspace.app.exports import routes
from innerspace.app.held import Held
from innerspace.app.studied import LETTERS, SUBSPACES, WAITING, choices, lacking, studied
from innerspace.app.subspaces import Partitions, SubspacesView
from innerspace.app.subspaces_drawings import KEY, code, draw, picture
from innerspace.app.tab import FAILURES, Shell, Tab, message, panel


class SubspacesTab(Tab):
    """Partitions of hidden spaces, and what their parts hold."""

    key = KEY
    title = "Subspaces"

    def __init__(self, run: Held) -> None:
        self._missing = _missing(run)
        if not self._missing:
            self.partitions = Partitions(studied(run))

    def missing(self) -> str:
        """Partitions, and states to search."""
        return self._missing

    def routes(self) -> Sequence[Route]:
        """The picture and the code of a view."""
        files = {"picture.svg": partial(picture, self.partitions), f"{KEY}.py": partial(code, self.partitions)}
        return routes(KEY, SubspacesView, files)

    def build(self, shell: Shell) -> None:
        """The part, the query and the level, and what is found."""
        _Panel(self.partitions).build(shell)


def _missing(run: Held) -> str:
    if reason := lacking(run):
        return reason
    return SUBSPACES if run.lacks("states_held_out/manifest.json") or not studied(run).partitions else ""


class _Panel:
    """The controls of the tab, in the order in which listeners get their values."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions

    def build(self, shell: Shell) -> None:
        """Lay everything out."""
        found = self._partitions
        is_text = found.studied.is_text
        with gr.Column(elem_classes="asking"):
            with gr.Row(elem_classes="choosers"):
                self.partition = gr.Dropdown(choices(found.partitions), label="Partition", scale=2, min_width=160)
                self.part = gr.Dropdown([], label="Part", scale=2, min_width=140, elem_id="part")
                self.query = gr.Dropdown([], label="Query", scale=4, min_width=220, elem_id="query")
            with gr.Row(elem_classes="choosers"):
                self.cosine = gr.Slider(
                    -0.95, 0.99, 0.85, step=0.01, label="Least cosine within the part", min_width=200, scale=2,
                    buttons=[], elem_id="cosine",
                )  # fmt: skip
                self.text = gr.Textbox(
                    label="Or type a text: its last token is the query", max_length=LETTERS + 200, submit_btn="Search",
                    visible=is_text, min_width=240, scale=3, elem_id="subspaces-text",
                )  # fmt: skip
                self.other = gr.Textbox(
                    label="Exchange the part with the last token of", max_length=LETTERS + 200, submit_btn="Exchange",
                    visible=is_text, min_width=240, scale=3, elem_id="subspaces-other",
                )  # fmt: skip
                self.agent = gr.Dropdown(
                    [],
                    label="Exchange the part with",
                    visible=not is_text,
                    min_width=220,
                    scale=3,
                    elem_id="other-agent",
                )
        self.notes = panel("subspaces-notes")
        self.shown = panel("subspaces-shown", WAITING)
        self._wire(shell)

    @property
    def controls(self) -> list[Component]:
        """All controls."""
        return [self.partition, self.part, self.query, self.cosine, self.text, self.other, self.agent]

    def _wire(self, shell: Shell) -> None:
        every = [*self.controls, self.shown, self.notes]
        shell.opened(self._restore, every)
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "trigger_mode": "always_last"}
        drawn = [self.shown, self.notes]
        for box in (self.part, self.agent):
            box.input(self._draw, self.controls, drawn, api_visibility="private", **quick)
        self.cosine.input(self._draw, self.controls, drawn, api_visibility="private", **quick)
        self.text.submit(self._renew, self.controls, every, api_name="subspaces", **quick)
        self.other.submit(self._draw, self.controls, drawn, api_visibility="private", **quick)
        self.query.input(self._choose, self.controls, every, api_visibility="private", **quick)
        self.partition.input(self._another, self.controls, every, api_visibility="private", **quick)

    def _view(self, *values: Any) -> SubspacesView:
        partition, part, query, cosine, text, other, agent = values
        words = (text or "").strip()
        if not self._partitions.studied.is_text:
            other = "" if agent is None or agent < 0 else str(agent)
        return SubspacesView(
            partition=partition,
            part=part,
            state=-1 if words or query is None else query,
            text=words,
            cosine=round(float(cosine), 4),
            other=(other or "").strip(),
        )

    def _draw(self, *values: Any) -> tuple[Any, ...]:
        """What the controls ask for, or why it cannot be."""
        try:
            return draw(self._partitions, self._view(*values)), ""
        except FAILURES as error:
            return gr.skip(), message(str(error))

    def _renew(self, *values: Any) -> tuple[Any, ...]:
        """A text as the query in place of a held-out state, or that again where the text is gone."""
        try:
            return self._all(self._partitions.opening(self._view(*values)), "")
        except FAILURES as error:
            return self._nothing(error)

    def _choose(self, *values: Any) -> tuple[Any, ...]:
        """A held-out state as the query, in place of a text."""
        try:
            partition, part, query, cosine, _, other, agent = values
            return self._all(self._view(partition, part, query, cosine, "", other, agent), "")
        except FAILURES as error:
            return self._nothing(error)

    def _another(self, *values: Any) -> tuple[Any, ...]:
        """Another partition, from its first part."""
        try:
            return self._all(replace(self._view(*values), part=0), "")
        except FAILURES as error:
            return self._nothing(error)

    def _restore(self, query: str) -> tuple[Any, ...]:
        """What an address asks for; where it cannot be, the page as it opens without one, and why."""
        try:
            return self._all(self._partitions.opening(SubspacesView.of(query, KEY)), "")
        except FAILURES as error:
            said = message(str(error))
        try:
            return self._all(self._partitions.opening(SubspacesView()), said)
        except FAILURES as error:
            return self._nothing(error)

    def _all(self, view: SubspacesView, notes: str) -> tuple[Any, ...]:
        """Every control as a view has it, and what is drawn."""
        found = self._partitions
        drawn, queries = draw(found, view), found.queries()
        parts = [(words, i) for i, words in enumerate(found.parts(view.partition))]
        known = [row for _, row in queries]
        if view.state >= 0 and view.state not in known:
            queries = [(found.words(view.state), view.state), *queries]
        agents = [("nothing", -1), *queries]
        agent = int(view.other) if not found.studied.is_text and view.other else -1
        if agent >= 0 and agent not in [row for _, row in agents]:
            agents.append((found.words(agent), agent))
        return (
            view.partition,
            gr.Dropdown(parts, value=view.part),
            gr.Dropdown(queries, value=view.state if view.state >= 0 else None),
            view.cosine,
            view.text,
            view.other if found.studied.is_text else "",
            gr.Dropdown(agents, value=agent),
            drawn,
            notes,
        )

    def _nothing(self, error: Exception) -> tuple[Any, ...]:
        return (*(gr.skip() for _ in (*self.controls, self.shown)), message(str(error)))
