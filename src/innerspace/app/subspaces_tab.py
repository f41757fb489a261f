"""The tab on subspaces."""

import gradio as gr

from innerspace.app.held import Held
from innerspace.app.tab import Shell, Tab


class SubspacesTab(Tab):
    """Nothing yet."""

    key = "subspaces"
    title = "Subspaces"

    def __init__(self, run: Held) -> None:
        self._run = run

    def missing(self) -> str:
        """Nothing."""
        return ""

    def build(self, shell: Shell) -> None:  # noqa: ARG002
        """Say so."""
        gr.HTML("<p>Nothing is here yet.</p>")
