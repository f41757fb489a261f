"""The tab on forecasts: a scene on a map, a slider for every control vector, and a sentence that moves them."""

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any, get_args

import gradio as gr
from gradio.components import Component
from starlette.routing import Route

from innerspace.app.forecast_drawings import KEY, Drawings
from innerspace.app.forecast_files import routes
from innerspace.app.forecasts import LONGEST_TEXT, STEP, Forecasts, ForecastView
from innerspace.app.held import Held
from innerspace.app.tab import FAILURES, Shell, Tab, message, panel
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.motion.requests import Mode
from innerspace.motion.scenes import KINDS
from innerspace.report.numerals import spoken


class ForecastsTab(Tab):
    """Forecasts of a motion forecaster, steered live."""

    key = KEY
    title = "Forecasts"

    def __init__(self, run: Held) -> None:
        self._missing = _missing(run)
        if not self._missing:
            self.forecasts = Forecasts(run)
            self.drawings = Drawings(self.forecasts)

    def missing(self) -> str:
        """A forecaster, and vectors that steer it."""
        return self._missing

    def routes(self) -> Sequence[Route]:
        """The picture, the vectors and the code of a view."""
        return routes(self.drawings)

    def build(self, shell: Shell) -> None:
        """The map with its chooser of scenes, and beside it the text, the sliders and what the forecasts do."""
        _Panel(self.forecasts, self.drawings).build(shell)


def _missing(run: Held) -> str:
    if not isinstance(run.job, WordsInMotion):
        return "it needs a run of words in motion"
    lacking = run.lacks("settings.json", "weights.safetensors", "directions.safetensors")
    return f"there is no {' and no '.join(lacking)}" if lacking else ""


class _Panel:
    """The controls of the tab, in the order in which listeners get their values."""

    def __init__(self, forecasts: Forecasts, drawings: Drawings) -> None:
        self._forecasts, self._drawings = forecasts, drawings

    def build(self, shell: Shell) -> None:
        """Lay everything out."""
        forecasts = self._forecasts
        titles = [item.title for item in forecasts.sets]
        with gr.Row(elem_classes="bench", equal_height=False):
            with gr.Column(scale=6, min_width=320):
                with gr.Row(elem_classes="choosers"):
                    self.scenes = gr.Dropdown(
                        titles, value=titles[0], label="Scenes", scale=1, min_width=120, visible=len(titles) > 1
                    )
                    self.scene = gr.Dropdown(self._scenes(titles[0]), value=0, label="Scene", scale=3, min_width=240)
                self.agents = gr.CheckboxGroup(
                    self._agents(ForecastView()), value=[0], label="Steered agents", elem_id="agents"
                )
                self.map = panel("map")
                self.under = panel("under")
            with gr.Column(scale=5, min_width=320):
                self.ask = gr.Textbox(
                    label="Ask for a motion",
                    placeholder="30 % slower, and turn left",
                    submit_btn="Steer",
                    max_length=LONGEST_TEXT,
                    elem_id="ask",
                )
                self.notes = panel("notes")
                with gr.Column(elem_classes="sliders", min_width=0):
                    self.sliders = {feature: self._slider(feature) for feature in forecasts.features}
                reset = gr.Button("All to zero", size="sm", elem_id="reset")
                with gr.Accordion("Where and how", open=False, elem_id="more"), gr.Row():
                    modes = [str(mode) for mode in get_args(Mode)]
                    methods = [("best for control", ""), *((spoken(name), name) for name in forecasts.methods)]
                    self.site = gr.Dropdown(forecasts.sites, value=forecasts.site, label="Site", min_width=120)
                    self.method = gr.Dropdown(methods, value="", label="Vectors by", min_width=140)
                    self.mode = gr.Dropdown(modes, value=modes[0], label="Way", min_width=120)
                self.beside = panel("beside")
        self.below = panel("below")
        self._wire(shell, reset)

    @property
    def controls(self) -> list[Component]:
        """All controls."""
        first = [self.scenes, self.scene, self.agents, self.site, self.method, self.mode, self.ask]
        return [*first, *self.sliders.values()]

    @property
    def shown(self) -> list[Component]:
        """What is drawn."""
        return [self.map, self.under, self.beside, self.below, self.notes]

    def _wire(self, shell: Shell, reset: gr.Button) -> None:
        shell.opened(self._restore, [*self.controls, *self.shown])
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False}
        for name, control in (("agents", self.agents), ("site", self.site), ("mode", self.mode)):
            control.input(self._draw, self.controls, self.shown, api_name=f"forecasts_{name}", **quick)
        for feature, slider in self.sliders.items():
            slider.input(
                self._draw,
                self.controls,
                self.shown,
                trigger_mode="always_last",
                api_name="forecasts" if feature == self._forecasts.features[0] else f"forecasts_{feature}",
                **quick,
            )
        for control in (self.scenes, self.scene, self.method):
            control.input(self._settle, self.controls, [*self.controls, *self.shown], api_visibility="private", **quick)
        self.ask.submit(self._obey, self.controls, [*self.controls, *self.shown], api_name="forecasts_ask", **quick)
        reset.click(self._zero, self.controls, [*self.controls, *self.shown], api_visibility="private", **quick)

    def _view(self, *values: Any) -> ForecastView:
        scenes, scene, agents, site, method, mode, ask, *amounts = values
        forecasts = self._forecasts
        pairs = zip(self.sliders, amounts, strict=True)
        return ForecastView(
            scenes="" if scenes == forecasts.sets[0].title else scenes,
            scene=scene,
            agents=tuple(sorted(agents)),
            site="" if site == forecasts.site else site,
            method=method,
            mode=mode,
            tau=tuple((feature, round(float(amount), 4)) for feature, amount in pairs if amount),
            ask=ask,
        )

    def _draw(self, *values: Any) -> tuple[Any, ...]:
        """What the controls ask for, or why it cannot be."""
        try:
            drawn = self._drawings.draw(self._view(*values))
        except FAILURES as error:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), message(str(error))
        return drawn.map, drawn.under, drawn.beside, drawn.below, ""

    def _settle(self, *values: Any) -> tuple[Any, ...]:
        """Another scene or other vectors: what no longer fits begins anew."""
        try:
            view = self._view(*values)
            if view.scene >= len(self._forecasts.set_of(replace(view, scene=0)).scenes):
                view = replace(view, scene=0)
            count = len(self._forecasts.set_of(view).scenes[view.scene].target)
            agents = tuple(agent for agent in view.agents if agent < count) or (0,)
            offered = self._forecasts.offered(view.method)
            tau = tuple(
                (feature, min(max(amount, -offered[feature].reach), offered[feature].reach))
                for feature, amount in view.tau
                if feature in offered
            )
            return self._all(replace(view, agents=agents, tau=tau), "")
        except FAILURES as error:
            return self._nothing(error)

    def _zero(self, *values: Any) -> tuple[Any, ...]:
        try:
            return self._all(replace(self._view(*values), tau=(), ask=""), "")
        except FAILURES as error:
            return self._nothing(error)

    def _obey(self, *values: Any) -> tuple[Any, ...]:
        """Move the sliders as the text says."""
        try:
            view = self._view(*values)
            view, notes = self._forecasts.obey(view, view.ask)
            lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
            return self._all(view, f'<ul class="message note" role="status">{lines}</ul>')
        except FAILURES as error:
            return self._nothing(error)

    def _restore(self, query: str) -> tuple[Any, ...]:
        """What an address asks for; where it cannot be, the page as it opens without one, and why."""
        try:
            return self._all(ForecastView.of(query, KEY), self._forecasts.missing and message(self._forecasts.missing))
        except FAILURES as error:
            said = message(str(error))
        try:
            return self._all(ForecastView(), said)
        except FAILURES as error:
            return self._nothing(error)

    def _all(self, view: ForecastView, notes: str) -> tuple[Any, ...]:
        """Every control as a view has it, and its drawings."""
        drawn, forecasts = self._drawings.draw(view), self._forecasts
        title, offered = forecasts.set_of(view).title, forecasts.offered(view.method)
        tau = dict(view.tau)
        sliders = [
            gr.Slider(
                minimum=-offered[feature].reach,
                maximum=offered[feature].reach,
                value=tau.get(feature, 0.0),
                interactive=True,
            )
            if feature in offered
            else gr.Slider(value=0.0, interactive=False)
            for feature in self.sliders
        ]
        return (
            title,
            gr.Dropdown(self._scenes(title), value=view.scene),
            gr.CheckboxGroup(self._agents(view), value=list(view.agents)),
            view.site or forecasts.site,
            view.method,
            view.mode,
            view.ask,
            *sliders,
            drawn.map,
            drawn.under,
            drawn.beside,
            drawn.below,
            notes,
        )

    def _nothing(self, error: Exception) -> tuple[Any, ...]:
        return (*(gr.skip() for _ in (*self.controls, *self.shown[:-1])), message(str(error)))

    def _slider(self, feature: str) -> gr.Slider:
        reach = self._forecasts.offered("")[feature].reach
        origin = self._forecasts.directions.select(feature).origins[0]
        return gr.Slider(
            -reach,
            reach,
            value=0.0,
            step=STEP,
            label=feature,
            info=f"{origin.negative} ↔ {origin.positive}",
            buttons=[],
            elem_id=f"tau-{feature}",
        )

    def _scenes(self, title: str) -> list[tuple[str, int]]:
        captions = next(item.captions for item in self._forecasts.sets if item.title == title)
        return [(f"{i + 1}. {caption}", i) for i, caption in enumerate(captions)]

    def _agents(self, view: ForecastView) -> list[tuple[str, int]]:
        scene = self._forecasts.set_of(view).scenes[view.scene]
        return [(f"{i + 1}, a {KINDS[int(scene.kind[agent])]}", i) for i, agent in enumerate(scene.target)]
