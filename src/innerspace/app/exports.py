"""What can be taken away from a tab: addresses of files, each with a view as its query, and the links to them."""

from collections.abc import Callable, Mapping
from html import escape
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from innerspace.app.state import View
from innerspace.app.tab import FAILURES

V = TypeVar("V", bound=View)

KINDS = {"svg": "image/svg+xml", "py": "text/x-python"}


def routes(key: str, kind: type[V], files: Mapping[str, Callable[[V], str]]) -> list[Route]:
    """An address below ``/export/KEY`` for each file; what cannot be is answered in words."""

    def route(name: str, make: Callable[[V], str]) -> Route:
        def answer(request: Request) -> Response:
            try:
                return Response(make(kind.of(request.url.query, key)), media_type=KINDS[name.rpartition(".")[2]])
            except FAILURES as error:
                return PlainTextResponse(str(error), status_code=400)

        return Route(f"/export/{key}/{name}", answer)

    return [route(name, make) for name, make in files.items()]


def links(view: View, key: str) -> str:
    """What can be saved of a view: its picture, and the code that gives the same."""
    query, place = escape(view.query(key)), f"export/{key}"
    each = (
        f'<a href="{place}/picture.svg?{query}" download="{key}.svg">SVG</a>',
        f'<button type="button" data-png="{place}/picture.svg?{query}" data-name="{key}.png">PNG</button>',
        f'<a href="{place}/{key}.py?{query}" download="{key}.py">Code</a>',
    )
    return f'<p class="links"><span>Save</span>{"".join(each)}</p>'
