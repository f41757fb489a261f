"""A sentence put to a finished run, in Python and on the command line."""

from pathlib import Path

import pytest
import torch

from innerspace.cli import main
from innerspace.jobs.finished import Finished
from innerspace.jobs.steer import steer
from innerspace.measure.control_loop import Loop
from innerspace.measure.solving import REACHED, UNDEFINED
from innerspace.motion.simulate import Simulation, simulate
from innerspace.value import read_json

Capture = pytest.CaptureFixture[str]


def test_a_sentence_steers_every_agent_by_itself(finished: Path) -> None:
    run = Finished.load(finished)
    framing = run.job.forecaster.framing
    scenes = simulate(Simulation(scenes=6, seed=9, history=framing.history, future=framing.future)).scenes
    done = steer(run, scenes, "2 % slower and turn left by 1°", loop=Loop(passes=12))
    found = done.answered.controlled
    assert found.tau.shape == (len(done.batch), 2)
    assert found.output["trajectory"].shape == found.clean["trajectory"].shape
    after = found.target - found.after
    # nothing asked, nothing changed
    idle = found.outcome == UNDEFINED
    assert (found.tau[idle] == 0).all()
    moving = done.answered.before["speed"] >= run.job.steering.moving
    assert not (moving[~idle] == 0).any()
    # what is reached lies within the tolerance, and speed is told in percent of its own
    hit = found.outcome == REACHED
    relative = 100 * (after[:, 0] / found.before[:, 0]).abs()
    assert (relative[hit] <= 2 + 1e-3).all()
    assert (after[hit, 1].abs() <= 2 + 1e-3).all()
    torch.testing.assert_close(done.answered.after["speed"], found.after[:, 0])
    text = [str(cell) for column in done.table().columns for cell in column.cells]
    assert {"speed, requested", "-2 %", "direction, reached", "reached"} <= set(text)
    only = Finished(run.model, run.job, run.site, {"speed": run.vectors["speed"]})
    with pytest.raises(ValueError, match="no vector steers direction; there are vectors of speed"):
        steer(only, scenes, "turn left")


def test_the_command_prints_what_came_of_it(finished: Path, capsys: Capture) -> None:
    flags = ["--data.scenes", "100", "--scenes", "4", "--loop.passes", "4", "--mode", "angular"]
    assert main(["steer", str(finished), "2 % faster", *flags]) == 0
    out = capsys.readouterr().out
    for part in ("2 % faster: ", "speed, requested", "+2 %", "passes through the network"):
        assert part in out
    assert main(["steer", str(finished), "fly"]) == 2
    assert "'fly' is not understood; possible are 'faster'" in capsys.readouterr().err
    assert main(["steer", str(finished.parent / "none"), "slower"]) == 2
    assert "holds no complete run" in capsys.readouterr().err
    assert main(["steer", str(finished), "slower", "--scenes", "0"]) == 2
    assert "at least one scene is needed" in capsys.readouterr().err


def test_the_report_judges_the_loop(finished: Path) -> None:
    given = read_json(finished / "report.json")["control_loop"]
    assert isinstance(given, dict)
    asked = {(row["feature"], row["request"]) for row in given["requests"]}
    assert asked == {("speed", -10.0), ("speed", 10.0), ("direction", 5.0)}
    ways = [(row["way"], row["mode"]) for row in given["requests"]]
    assert set(ways) == {("loop", "additive"), ("loop", "angular"), ("curve", "additive"), ("random", "additive")}
    assert len(ways) == 12
    for row in given["requests"]:
        assert 0 <= row["reached"]["mean"] <= 1
        if row["way"] != "curve":
            assert row["change"][2] <= 1 + 1e-4
            assert row["passes"] <= 6
            assert sum(row["outcomes"].values()) == pytest.approx(1)
            assert row["outcomes"]["reached"] == pytest.approx(row["reached"]["mean"])
    assert [row["mode"] for row in given["modes"]] == ["additive", "norm-preserving", "angular"]
    sites = read_json(finished / "report.json")["cost"]["by_site"]["sites"]
    assert {"agent.0", "agent.2", "red.0", "modes.0"} <= {row["site"] for row in sites}
    assert all(row["ratio"]["mean"] > 0 for row in sites)
    page = (finished / "report.html").read_text()
    assert '<section id="control-loop"' in page
    assert "Steering at every site" in page
