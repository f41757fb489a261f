"""The tab on latents."""

import gradio as gr

from innerspace.app.held import Held
from innerspace.app.tab import Shell, Tab


class LatentsTab(Tab):
    """Nothing yet."""

    key = "latents"
    title = "Latents"

    def __init__(self, run: Held) -> None:
        self._run = run

    def missing(self) -> str:
        """Nothing."""
        return ""

    def build(self, shell: Shell) -> None:  # noqa: ARG002
        """Say so."""
        gr.HTML("<p>Nothing is here yet.</p>")
