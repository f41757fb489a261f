"""The workbench as a page: its tabs in a row, its looks, and the server that gives it out."""

import logging
import signal
import socket
import threading
from html import escape
from pathlib import Path
from typing import Any, final

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from innerspace.app.forecasts_tab import ForecastsTab
from innerspace.app.held import Held
from innerspace.app.language_tab import LanguageTab
from innerspace.app.latents_tab import LatentsTab
from innerspace.app.looks import theme
from innerspace.app.palette import page_style, resource
from innerspace.app.state import tab_of
from innerspace.app.subspaces_tab import SubspacesTab
from innerspace.app.tab import Shell, Tab, message, panel

TABS: tuple[type[Tab], ...] = (ForecastsTab, LanguageTab, LatentsTab, SubspacesTab)
"""The tabs in their order; a run gets those for which it holds what they show."""


@final
class Workbench:
    """A run's tabs on a page, and the server that gives it out.

    Raises:
        ValueError: if the run holds nothing that any tab shows, saying what each of them lacks.
    """

    def __init__(self, run: Held) -> None:
        self.run = run
        made = [kind(run) for kind in TABS]
        self.absent = {tab.title: reason for tab in made if (reason := tab.missing())}
        self.tabs = [tab for tab in made if tab.title not in self.absent]
        if not self.tabs:
            raise ValueError(f"{run.folder} holds nothing to show: {_listed(self.absent)}")
        self._blocks = self._lay_out()

    def start(self, *, port: int, host: str = "127.0.0.1", share: bool = False) -> str:
        """Begin to serve; gives the address. Port 0 takes a free one.

        Raises:
            OSError: if the port is taken.
        """
        # what a browser asks for is of no interest on a terminal
        logging.getLogger("httpx").setLevel(logging.WARNING)
        _, local, shared = self._launch(port=_free(host, port), host=host, share=share)
        return shared or local

    def _launch(self, *, port: int, host: str, share: bool) -> tuple[Any, str, str | None]:
        return self._blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            ssr_mode=False,
            enable_monitoring=False,
            theme=theme(),
            # what is given as css would be rewritten, and comes late
            head=f"<style>{page_style()}</style><script>{resource('page.js')}</script>",
            app_kwargs={
                "routes": [route for tab in self.tabs for route in tab.routes()],
                "middleware": [Middleware(_StaysHere)],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
        )

    def wait(self) -> None:
        """Serve until interrupted or asked to end."""
        for way in (signal.SIGINT, signal.SIGTERM):
            # what was started in the background may have been told to ignore them
            signal.signal(way, signal.default_int_handler)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()

    def stop(self) -> None:
        """End the server."""
        self._blocks.close(verbose=False)

    def _lay_out(self) -> gr.Blocks:
        keys = [tab.key for tab in self.tabs]
        with gr.Blocks(
            title=f"{self.run.folder.name} · innerspace", fill_width=True, analytics_enabled=False
        ) as blocks:
            shell = Shell(blocks)
            heading = panel("heading")
            heading.value = _heading(self.run.folder, self.absent)
            trouble = panel("trouble")
            with gr.Tabs(elem_id="tabs") as tabs:
                for tab in self.tabs:
                    with gr.Tab(tab.title, id=tab.key, elem_id=f"tab-{tab.key}") as opened:
                        tab.build(shell)
                    opened.select(None, js=f"() => workbench.remember('tab', 'tab={tab.key}')")

            def open_tab(query: str) -> tuple[Any, str]:
                try:
                    # the first is open already, and a reader may have opened another one meanwhile
                    key = tab_of(query, keys)
                    return gr.skip() if key == keys[0] else gr.Tabs(selected=key), ""
                except ValueError as error:
                    return gr.skip(), message(str(error))

            shell.opened(open_tab, [tabs, trouble])
        return blocks


@final
class _StaysHere:
    """Tells browsers to load nothing from elsewhere, whatever a page asks for."""

    _POLICY = (
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
        b"frame-ancestors 'none'"
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(event: Message) -> None:
            if event["type"] == "http.response.start":
                own = [(b"content-security-policy", self._POLICY), (b"referrer-policy", b"no-referrer")]
                event = {**event, "headers": [*event.get("headers", ()), *own]}
            await send(event)

        await self._app(scope, receive, guarded if scope["type"] == "http" else send)


def _free(host: str, port: int) -> int:
    """The port, or for 0 one that is free: what gradio tries and cannot have it leaves open."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"port {port} of {host} cannot be had: {error.strerror}; 0 takes a free one") from None
        return int(probe.getsockname()[1])


def _heading(folder: Path, absent: dict[str, str]) -> str:
    lacking = f'<p class="absent">Not in this run: {escape(_listed(absent))}.</p>' if absent else ""
    return f'<header><h1>{escape(folder.name)}</h1><p class="house">innerspace workbench</p></header>{lacking}'


def _listed(absent: dict[str, str]) -> str:
    return "; ".join(f"{title} ({reason})" for title, reason in absent.items())
