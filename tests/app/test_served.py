"""The server: it refuses what it cannot serve before it starts, and answers many at once as it would answer one."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from innerspace.app.forecast_drawings import KEY, Drawings
from innerspace.app.forecasts import Forecasts, ForecastView
from innerspace.app.held import Held
from innerspace.app.serve import prepare, serve
from innerspace.cli import main

USERS, EACH = 20, 3


@pytest.fixture(scope="module")
def drawings(folder: Path) -> Drawings:
    """What the same run says, asked without any server."""
    return Drawings(Forecasts(Held.open(folder)))


def asked(features: list[str], view: ForecastView) -> list[Any]:
    """A view as the values of the tab's controls."""
    amounts = dict(view.tau)
    sliders = [amounts.get(feature, 0.0) for feature in features]
    return [
        "held out",
        view.scene,
        list(view.agents),
        view.site or "agent.2",
        view.method,
        view.mode,
        view.ask,
        *sliders,
    ]


def post(address: str, data: list[Any]) -> Any:
    request = urllib.request.Request(
        f"{address}gradio_api/run/forecasts",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


def get(address: str, path: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(address + path, timeout=60) as answer:
            return answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], error.read()


def test_twenty_at_once_get_right_answers(workbench: tuple[Any, str], drawings: Drawings) -> None:
    _, address = workbench
    features = drawings.forecasts.features

    def view(user: int, turn: int) -> ForecastView:
        amount = round(0.03 * turn + 0.005 * user + 0.01, 4)
        return ForecastView(scene=user % 4, agents=(user % 2,), tau=(("speed", amount),))

    def user(number: int) -> list[list[str]]:
        return [post(address, asked(features, view(number, turn))) for turn in range(EACH)]

    with ThreadPoolExecutor(USERS) as pool:
        answers = list(pool.map(user, range(USERS)))
    for number, own in enumerate(answers):
        for turn, (drawn, under, beside, below, notes) in enumerate(own):
            expected = drawings.draw(view(number, turn))
            assert notes == ""
            assert (drawn, under, beside, below) == (
                expected.map,
                expected.under,
                expected.beside,
                expected.below,
            )


def test_a_wrong_input_is_answered_in_words(workbench: tuple[Any, str], drawings: Drawings) -> None:
    _, address = workbench
    view = ForecastView(agents=(), tau=(("speed", 0.1),))
    *_, notes = post(address, asked(drawings.forecasts.features, view))
    assert "choose at least one agent" in notes
    assert 'role="alert"' in notes


def test_files_are_given_for_a_view_alone(workbench: tuple[Any, str]) -> None:
    _, address = workbench
    query = ForecastView(scene=1, tau=(("speed", 0.2),)).query(KEY)
    for name, kind, start in (
        ("picture.svg", "image/svg+xml", b"<svg"),
        ("vectors.safetensors", "application/octet-stream", b""),
        ("forecasts.py", "text/x-python", b'"""'),
    ):
        status, given, body = get(address, f"export/{KEY}/{name}?{query}")
        assert status == 200
        assert given.startswith(kind)
        assert body.startswith(start)
        assert len(body) > 500
    status, _, body = get(address, f"export/{KEY}/picture.svg?{KEY}.scene=9999")
    assert (status, b"there is no scene 9999" in body) == (400, True)


def test_the_page_may_load_nothing_from_elsewhere(workbench: tuple[Any, str]) -> None:
    with urllib.request.urlopen(workbench[1], timeout=60) as answer:
        policy = answer.headers["content-security-policy"]
        text = answer.read().decode()
    assert policy.startswith("default-src 'self'")
    assert "http" not in policy
    assert "fonts.googleapis.com" not in text
    assert '"analytics_enabled":false' in text.replace(" ", "")


def test_what_cannot_be_served_is_refused_before(
    workbench: tuple[Any, str],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["serve", *arguments]) == 2
        return capsys.readouterr().err

    assert "no folder at" in refused(str(tmp_path / "none"))
    assert "holds no run: there is no job.json" in refused(str(tmp_path))
    assert "a port lies in 0 … 65535, not at 99999" in refused(str(folder), "--port", "99999")
    assert "host should be an address" in refused(str(folder), "--host", "example.org")
    (tmp_path / "job.json").write_text("{")
    assert "not valid JSON" in refused(str(tmp_path))
    taken = workbench[1].rstrip("/").rpartition(":")[2]
    assert f"port {taken} of 127.0.0.1 cannot be had" in refused(str(folder), "--port", taken)
    # a run that ended before it left anything
    shutil.copy(folder / "job.json", tmp_path / "job.json")
    page = sys.modules["innerspace.app.page"]
    monkeypatch.setattr(page, "TABS", page.TABS[:1])
    said = "holds nothing to show: Forecasts (there is no settings.json and no weights.safetensors and no directions"
    assert said in refused(str(tmp_path))


def test_the_command_serves_until_it_is_interrupted(workbench: tuple[Any, str], folder: Path) -> None:
    command = [sys.executable, "-u", "-m", "innerspace", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == f"reading {folder}\n"
            told = re.fullmatch(
                r"workbench: (http://127\.0\.0\.1:\d+/) \(ctrl-c ends it\)\n", process.stdout.readline()
            )
            assert told is not None
            status, kind, body = get(told[1], "")
            assert (status, kind.partition(";")[0]) == (200, "text/html")
            assert f'content="{folder.name} · innerspace"' in body.decode()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_without_gradio_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs gradio: pip install 'innerspace\[app\]'"):
        serve(folder, None, print, port=0, host="127.0.0.1", share=False)


def test_nobody_is_told() -> None:
    prepare("127.0.0.1", 0)
    analytics = sys.modules.get("gradio.analytics") or pytest.importorskip("gradio.analytics")
    assert not analytics.analytics_enabled()
