"""Views in addresses: they come back as they were, and what is hostile is refused with words."""

from dataclasses import dataclass

import pytest

from innerspace.app.forecasts import ForecastView
from innerspace.app.state import LONGEST, View, tab_of


@dataclass(frozen=True)
class Words(View):
    text: str = ""
    names: tuple[str, ...] = ()
    share: float = 0.5


VIEWS = [
    ForecastView(),
    ForecastView(scenes="held out", scene=7, agents=(1, 0), site="agent.0", tau=(("speed", -0.4), ("agent", 1e-3))),
    ForecastView(method="mean_difference", mode="angular", ask='30 % slower & "left", <b>+1</b> ü?#='),
    ForecastView(agents=()),
]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_comes_back_from_its_address(view: ForecastView) -> None:
    other = Words("a.b=c&d", ("one", "two"), -1.25)
    query = f"?tab=words&{view.query('forecasts')}&{other.query('words')}"
    assert ForecastView.of(query, "forecasts") == view
    assert Words.of(query, "words") == other
    assert tab_of(query, ["forecasts", "words"]) == "words"


def test_defaults_leave_no_trace() -> None:
    assert ForecastView().query("forecasts") == ""
    assert ForecastView.of("", "forecasts") == ForecastView()
    assert tab_of("", ["forecasts", "words"]) == "forecasts"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("forecasts.scene=x", "forecasts.scene should be a whole number, not 'x'"),
        ("forecasts.scene=1_000", "should be a whole number"),
        ("forecasts.scene=٣", "should be a whole number"),
        ("forecasts.scene=99999999999", "should be a whole number"),
        ("forecasts.scene=1&forecasts.scene=2", "names 'forecasts.scene' twice"),
        ("forecasts.tau=speed", "'speed' should be a name and a number"),
        ("forecasts.tau=speed:nan", "should be a finite number, not 'nan'"),
        ("forecasts.tau=speed:1e999", "should be a finite number"),
        ("forecasts.tau=speed:1,speed:2", "names something twice"),
        ("forecasts.agents=0,zero", "should be a whole number, not 'zero'"),
        ("forecasts.__class__=1", "the address names 'forecasts.__class__'; fields of forecasts are scenes, scene"),
        ("forecasts.ask=" + LONGEST * "a", f"has {LONGEST + 14:,} characters; at most {LONGEST:,} are read"),
        ("forecasts.ask=%ff", "no text in UTF-8"),
        ("&".join(f"a{i}=1" for i in range(101)), "too many fields"),
    ],
)
def test_hostile_addresses_are_refused(query: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", "\\(")):
        ForecastView.of(query, "forecasts")


def test_an_unknown_tab_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no tab 'settings' here; there are forecasts, words"):
        tab_of("tab=settings", ["forecasts", "words"])


def test_a_mark_cannot_leave_its_attribute() -> None:
    mark = ForecastView(ask='"><script>alert(1)</script>').mark("forecasts")
    assert mark.count("<") == 2
    assert mark.count('"') == 4
