"""The forecasts that a view asks for, as a page shows them: the map with its key, and what stands beside it."""

from dataclasses import dataclass, replace
from html import escape
from typing import final
from weakref import WeakKeyDictionary

from innerspace.app.forecast_charts import calibrations, over_time, readings, warnings
from innerspace.app.forecasts import Forecasts, ForecastView, Stage, Steered
from innerspace.app.scene_map import HUES, SceneMap
from innerspace.motion.forecast_metrics import Forecast
from innerspace.motion.responses import Limits

KEY = "forecasts"
"""The tab's name in the address."""


@dataclass(frozen=True)
class Drawn:
    """HTML: the map, what is said and saved of it, what the forecasts do, and the calibration of the vectors."""

    map: str
    under: str
    beside: str
    below: str


@final
class Drawings:
    """Draws what a run's forecaster says; what does not depend on temperatures is drawn once for each scene."""

    def __init__(self, forecasts: Forecasts) -> None:
        self.forecasts = forecasts
        self._maps = WeakKeyDictionary[Stage, dict[tuple[int, ...], SceneMap]]()

    def draw(self, view: ForecastView) -> Drawn:
        """The drawings of a view.

        Raises:
            ValueError: for what there is not, naming what there is.
        """
        found = self.forecasts.steer(view)
        scene_map = self.map_of(view, found)
        said = warnings(found, Limits())
        if view.site not in ("", own := self.forecasts.site):
            said.append((f"The vectors were fitted at {own}, and are added at {view.site}.", "note"))
        lines = "".join(f'<p class="message {kind}" role="status">{escape(line)}</p>' for line, kind in said)
        drawn = f'<figure class="stage">{scene_map.draw(found)}<figcaption>{_key(found)}</figcaption></figure>'
        return Drawn(
            drawn,
            _links(view) + lines + view.mark(KEY),
            readings(found) + over_time(found),
            calibrations(found, self.forecasts.offered(view.method)),
        )

    def map_of(self, view: ForecastView, found: Steered) -> SceneMap:
        """The map of a view's scene, with room for the forecasts of its agents at the ends of all calibrations."""
        known = self._maps.setdefault(found.stage, {})
        if view.agents not in known:
            known[view.agents] = SceneMap.of(found.stage, found.chosen, self._likely(view, found))
        return known[view.agents]

    def _likely(self, view: ForecastView, found: Steered) -> list[Forecast]:
        plain = replace(view, method="", mode="additive")
        ends = [
            ((feature, sign * vector.end),)
            for feature, vector in self.forecasts.offered("").items()
            for sign in (-1.0, 1.0)
        ]
        return [found.clean, *(self.forecasts.steer(replace(plain, tau=end)).steered for end in ends)]


def _key(found: Steered) -> str:
    """What the colors mean."""
    agents = [
        f'<li class="hue-{row % HUES}"><i></i><span>agent {row + 1}, steered</span></li>'
        for row in found.chosen.nonzero().flatten().tolist()
    ]
    rest = (
        '<li class="ghost"><i></i><span>unsteered</span></li><li class="truth"><i></i><span>what happened</span></li>'
    )
    return f'<ul class="key">{"".join(agents)}{rest}</ul>'


def _links(view: ForecastView) -> str:
    """What can be taken away."""
    query = escape(view.query(KEY))
    place = f"export/{KEY}"
    links = (
        f'<a href="{place}/picture.svg?{query}" download="forecasts.svg">SVG</a>',
        f'<button type="button" data-png="{place}/picture.svg?{query}" data-name="forecasts.png">PNG</button>',
        f'<a href="{place}/vectors.safetensors?{query}" download="vectors.safetensors">Vectors</a>',
        f'<a href="{place}/forecasts.py?{query}" download="forecasts.py">Code</a>',
    )
    return f'<p class="links"><span>Save</span>{"".join(links)}</p>'
