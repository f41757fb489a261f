"""The workbench's server: a run is looked at before it starts, and it speaks to this machine alone unless asked."""

import importlib.util
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path

from innerspace.app.held import Held
from innerspace.motion.sources import SceneSource


def serve(
    run: Path,
    scenes: SceneSource | None,
    say: Callable[[str], None],
    *,
    port: int,
    host: str,
    share: bool,
) -> None:
    """Serve the workbench on a run's folder until it is interrupted; ``say`` is told how far it is, and the address.

    ``scenes`` are shown to the run's forecaster beside its own, if it has one. Port 0 takes a free one. With ``share``
    gradio makes a public link, through its makers' servers, to whoever knows it.

    Raises:
        ValueError: if the folder holds no run or nothing that a tab can show, a port that cannot be, or gradio is not
            installed.
        OSError: if the port is taken.
    """
    prepare(host, port)
    from innerspace.app.page import Workbench

    held = Held.open(run, scenes)
    say(f"reading {run}")
    workbench = Workbench(held)
    say(f"workbench: {workbench.start(port=port, host=host, share=share)} (ctrl-c ends it)")
    workbench.wait()


def prepare(host: str, port: int) -> None:
    """Refuse what cannot be served, and keep gradio from telling anyone about it.

    Raises:
        ValueError: for a host that is no address, a port out of range, or without gradio.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"a port lies in 0 … 65535, not at {port}; 0 takes a free one")
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"host should be an address, such as 127.0.0.1 or 0.0.0.0, not {host!r}") from None
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the workbench needs gradio: pip install 'innerspace[app]'")
    # read when gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
