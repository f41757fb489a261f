"""What can be taken away from the tab on forecasts: the picture, the vectors, and code that gives the same."""

import re
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from innerspace.app.forecast_drawings import KEY, Drawings
from innerspace.app.forecasts import Forecasts, ForecastView
from innerspace.app.palette import LIGHT, file_style
from innerspace.decompose.directions import Directions

SIDE, FOOT = 1000, 64
"""Width of a picture's map, and height of the lines below it, in pixels."""


def routes(drawings: Drawings) -> list[Route]:
    """The addresses of the files, each with a view as its query."""
    made: dict[str, tuple[Callable[[ForecastView], str | bytes], str]] = {
        "picture.svg": (lambda view: picture(drawings, view), "image/svg+xml"),
        "vectors.safetensors": (lambda view: vectors(drawings.forecasts, view), "application/octet-stream"),
        "forecasts.py": (lambda view: code(drawings.forecasts, view), "text/x-python"),
    }

    def route(name: str, make: Callable[[ForecastView], str | bytes], kind: str) -> Route:
        def answer(request: Request) -> Response:
            try:
                return Response(make(ForecastView.of(request.url.query, KEY)), media_type=kind)
            except ValueError as error:
                return PlainTextResponse(str(error), status_code=400)

        return Route(f"/export/{KEY}/{name}", answer)

    return [route(name, *how) for name, how in made.items()]


def picture(drawings: Drawings, view: ForecastView) -> str:
    """The map as an SVG file that needs nothing else, with a line that says what it shows."""
    found = drawings.forecasts.steer(view)
    inner = drawings.map_of(view, found).draw(found)
    inner = re.sub(r"<svg ", f'<svg width="{SIDE}" height="{SIDE}" ', inner, count=1)
    lines = [describe(drawings.forecasts, view), "gray: unsteered; dotted: what happened"]
    texts = "".join(
        f'<text x="16" y="{SIDE + 26 + 22 * i}" font-size="15" fill="{LIGHT["ink"]}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    size = f'width="{SIDE}" height="{SIDE + FOOT}" viewBox="0 0 {SIDE} {SIDE + FOOT}"'
    ground = f'<rect width="{SIDE}" height="{SIDE + FOOT}" fill="{LIGHT["paper"]}"/>'
    field = f'<rect width="{SIDE}" height="{SIDE}" fill="{LIGHT["ground"]}"/>'
    style = f"<style>{file_style()}\n.map {{ overflow: hidden }} text {{ font-family: sans-serif }}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{ground}{field}{inner}{texts}</svg>\n'


def vectors(forecasts: Forecasts, view: ForecastView) -> bytes:
    """The vectors that are added, or all that are offered where none is: a file that ``Directions.load`` reads."""
    offered = forecasts.offered(view.method)
    rows = [vector.row for vector, _ in forecasts.amounts(view).values()] or [one.row for one in offered.values()]
    all_ = forecasts.directions
    chosen = Directions(all_.raw[rows], all_.gap[rows], [all_.origins[row] for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "vectors.safetensors"
        chosen.save(place)
        return place.read_bytes()


def describe(forecasts: Forecasts, view: ForecastView) -> str:
    """What a view shows, in a line."""
    scene = forecasts.set_of(view).scenes[view.scene]
    added = ", ".join(f"{feature} τ = {amount:+g}" for feature, (_, amount) in forecasts.amounts(view).items())
    agents = ", ".join(str(agent + 1) for agent in view.agents)
    return f"{scene.name}, agent {agents}: {added or 'unsteered'} at {view.site or forecasts.site}"


_CODE = '''"""{what}."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from innerspace.decompose.directions import Directions
from innerspace.interventions import At
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.motion.requests import way
from innerspace.measure.forecasts import forecast
from innerspace.motion.forecasters.known import load_model
from innerspace.motion.framing import frame
{imports}from innerspace.network.site import Where

run = Path({run!r})
job = WordsInMotion.load(run / "job.json")
model = load_model(run)

{scenes}
scene = next(scene for scene in scenes if scene.name == {name!r})
batch = frame([scene], job.forecaster.framing)
steered = torch.isin(batch.agent, torch.tensor({agents}))

# what τ = 1 adds: one gap between the means of opposing classes
vectors = Directions.load(run / "directions.safetensors").directions[{rows}]
tau = steered[:, None] * torch.tensor({tau})
with torch.no_grad():
    edit = At(Where("valid"), way({mode!r})(vectors, tau))
    found = forecast(model.run(batch, {{{site!r}: edit}}).output)

kept = torch.isin(batch.agent, torch.tensor({shown}))
save_file(
    {{"trajectory": found.trajectory[kept].contiguous(), "probability": found.probability[kept].contiguous()}},
    "forecasts.safetensors",
)
for agent, path in zip(batch.agent[kept].tolist(), found.most_likely()[kept], strict=True):
    print(f"agent {{agent}} ends at ({{path[-1, 0]:.2f}}, {{path[-1, 1]:.2f}}) m in its own frame")
'''


def code(forecasts: Forecasts, view: ForecastView) -> str:
    """A program that makes a view's forecasts and writes them to ``forecasts.safetensors``, an agent in each row."""
    chosen, added = forecasts.set_of(view), forecasts.amounts(view)
    scene = chosen.scenes[view.scene]
    targets = [int(agent) for agent in scene.target]
    # refuses what there is not
    forecasts.steer(view)
    tau = [amount for _, amount in added.values()] or [0.0]
    rows = [vector.row for vector, _ in added.values()] or [forecasts.vectors[0].row]
    return _CODE.format(
        what=describe(forecasts, view).replace("\\", "").replace('"', ""),
        run=str(forecasts.run.folder),
        imports=chosen.imports,
        scenes=chosen.code,
        name=scene.name,
        agents=[targets[agent] for agent in view.agents],
        rows=rows,
        tau=tau,
        mode=view.mode,
        site=view.site or forecasts.site,
        shown=targets,
    )
