"""What a tab of the workbench is, and what it may ask of the page that it stands on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, ClassVar, final

import gradio as gr
from gradio.blocks import Block
from starlette.routing import Route

from innerspace.app.held import Held


@final
class Shell:
    """The page around the tabs: it tells a tab what the address holds when the page is opened."""

    def __init__(self, page: gr.Blocks) -> None:
        self._page = page
        # the script puts the address into the call, whatever this component holds
        self._address = gr.Textbox(visible=False)

    def opened(self, restore: Callable[[str], Any], outputs: Sequence[Block]) -> None:
        """Let ``restore`` fill the outputs from the address (its query string) when a browser opens the page."""
        self._page.load(
            restore,
            [self._address],
            list(outputs),
            js="() => [workbench.opened]",
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )


class Tab(ABC):
    """A tab: made from a run before the server starts, laid out when the page is.

    ``key`` names it in the address, ``title`` on the page. What it shows is a ``View``: listeners take the controls'
    values and give what is drawn, with ``View.mark`` in it, so that the address follows; ``Shell.opened`` leads back.
    Listeners run in threads of their own, several at once: what they share needs a lock.
    """

    key: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def __init__(self, run: Held) -> None:
        """Look at the run; heavy loading may wait until it is needed.

        Raises:
            ValueError: for files that are there, but damaged.
        """

    @abstractmethod
    def missing(self) -> str:
        """What the run does not hold, so that there is no such tab, in a clause; empty where all is there."""

    @abstractmethod
    def build(self, shell: Shell) -> None:
        """Lay out the controls inside the open tab, and say what follows when they move."""

    def routes(self) -> Sequence[Route]:
        """Addresses from which the tab's pictures and files are downloaded, below ``/export/KEY``."""
        return ()


def panel(name: str, first: str = "") -> gr.HTML:
    """A place for HTML of our own, which gradio's styles leave alone; ``name`` is its element's."""
    return gr.HTML(first, elem_id=name, padding=False, apply_default_css=False, js_on_load=None)


def message(text: str, kind: str = "error") -> str:
    """A line that says what went wrong, or (``kind="note"``) what should be known."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="message {kind}" role="{role}">{escape(text)}</p>'


FAILURES = (ValueError, OSError, RuntimeError)
"""What a listener shows as a message: a wrong input, files that are gone, a model that failed."""
