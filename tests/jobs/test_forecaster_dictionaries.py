"""The job that trains dictionaries, on a forecaster: end to end means by what a dictionary changes in forecasts."""

import dataclasses
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from innerspace.checkpoint import load_state
from innerspace.cli import main
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import TopK
from innerspace.jobs.dictionaries.end_to_end import EndToEnd, compared
from innerspace.jobs.dictionaries.lessons import Course, Lesson, train_lessons
from innerspace.jobs.dictionary import DictionaryJob, Showing
from innerspace.jobs.inputs.data import Data
from innerspace.jobs.inputs.scenes import Captions, SceneData, SceneReading, SceneStream
from innerspace.jobs.job import Job, Run, execute
from innerspace.learn.fit import FitConfig
from innerspace.learn.objectives import OutputKL, Reconstruction
from innerspace.learn.spliced import spliced, survey
from innerspace.motion.forecasters.forecaster import save
from innerspace.motion.forecasters.redmotion import RedMotion, RedMotionSettings
from innerspace.motion.framing import Framing
from innerspace.motion.sentences import parse
from innerspace.motion.words import Vocabulary
from innerspace.parallel import Share
from innerspace.report.blocks import Palette, Remarks, Table
from innerspace.report.end_to_end import end_to_end
from innerspace.value import read_json

SITE = "agent.2"
STEPS = 60


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    framing = Framing(history=6, future=20, stride=5, agents=3, lines=6)
    settings = RedMotionSettings(
        framing=framing, width=16, trajectory_layers=3, red_tokens=3, decoder_layers=1, modes=2, window=8
    )
    folder = tmp_path_factory.mktemp("forecaster")
    save(RedMotion(settings), folder)
    return folder


@pytest.fixture(scope="module")
def data(forecaster: Path) -> SceneData:
    return SceneData(forecaster, Data(scenes=100, fit=0.4, test=0.2), batch=8)


@pytest.fixture(scope="module")
def reading(data: SceneData, tmp_path_factory: pytest.TempPathFactory) -> SceneReading:
    return data.open(Run(tmp_path_factory.mktemp("run"), Console(file=StringIO())))


@pytest.fixture(scope="module")
def job(data: SceneData) -> DictionaryJob:
    size = {"latents": 12, "nonlinearity": TopK(1)}
    return DictionaryJob(
        data,
        (
            Lesson(SITE, "local", objective=(Reconstruction(),), **size),
            Lesson(SITE, "e2e", objective=(OutputKL(),), **size),
        ),
        Course(
            tokens=STEPS * 8 * 6,
            fit=FitConfig(rate=3e-2, cooldown=0.5, log_every=15),
            together=2,
            snapshots=2,
            surveyed=4,
        ),
        Showing(sequences=20, features=3),
    )


@pytest.fixture(scope="module")
def finished(job: DictionaryJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "forecaster"
    execute(job, folder, Console(file=StringIO()))
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "dictionaries").glob("*.safetensors")}


def test_end_to_end_training_changes_the_forecasts_less(finished: Path) -> None:
    """Less than local training at the same L0, and far less than it did when it began."""
    report = read_json(finished / "report.json")
    local, e2e = report["fidelity"]
    assert (local["kind"], e2e["kind"]) == ("local", "e2e")
    assert local["l0"]["mean"] == e2e["l0"]["mean"] == 1
    assert e2e["divergence"]["mean"] < 0.8 * local["divergence"]["mean"]
    assert e2e["explained_variance"]["mean"] < local["explained_variance"]["mean"]
    curve = next(row for row in report["training"] if row["kind"] == "e2e")["curves"]
    held_out = [value for value in curve["held_out_divergence"] if value is not None]
    assert len(held_out) == 2
    first, *_, last = [value for value in curve["output_kl"] if value is not None]
    assert held_out[-1] < first
    assert last < first / 2


def test_the_page_speaks_of_forecasts_and_motion(finished: Path) -> None:
    report = read_json(finished / "report.json")
    assert report["title"] == "Dictionaries of a motion forecaster"
    assert [line["label"] for line in report["headlines"]] == [f"{SITE}-local-0", f"{SITE}-e2e-0"]
    assert all("divergence of the output" in line["note"] for line in report["headlines"])
    assert not any(key.startswith("ce_") or key in ("kl", "top1") for row in report["fidelity"] for key in row)
    assert [row["site"] for row in report["fidelity"][0]["downstream"]][:2] == [SITE, "context.0"]
    assert "held-out scenes" in report["notes"]["fidelity"]
    captions = [
        example["caption"]
        for entry in report["features"]["entries"]
        for band in entry["bands"]
        for example in band["examples"]
    ]
    assert captions
    for caption in captions:
        sentence, _, measured = caption.partition(" · ")
        assert parse(sentence)["agent"] in caption
        assert measured.count("m/s") == 2
    assert (finished / "report.html").stat().st_size > 10_000
    assert report["provenance"]["data"].startswith("RedMotion; 100 simulated scenes")


def test_only_the_dictionary_learns(reading: SceneReading) -> None:
    model, before = reading.model, reading.model.fingerprint()
    moments = survey(model, reading.sample(2), [SITE], reading.where)[SITE]
    what = Dictionary(16, 12, TopK(3), mean=moments.mean, scale=moments.variance**0.5)
    term = OutputKL()
    trial = (
        spliced(model, reading.stream(0), [SITE], {SITE: moments.variance}).draw(term.needs).trial(what, "", term.needs)
    )
    term(trial).backward()
    for name in ("encoder", "decoder", "encoder_bias", "decoder_bias"):
        assert getattr(what, name).grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert model.fingerprint() == before


def test_an_interrupted_training_ends_with_the_same_bits(
    finished: Path, job: DictionaryJob, reading: SceneReading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, whole, run = [0], SceneStream.next, Run(tmp_path, Console(file=StringIO()))

    def interrupted(stream: SceneStream) -> object:
        drawn[0] += 1
        if drawn[0] > 50:
            raise KeyboardInterrupt
        return whole(stream)

    with monkeypatch.context() as patch:
        patch.setattr(SceneStream, "next", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_lessons(run, reading, job.lessons, job.course)
    assert load_state(tmp_path / "dictionaries" / f"{SITE}-local-0.snapshot")["step"] == STEPS / 2
    assert not weights(tmp_path)
    train_lessons(run, reading, job.lessons, job.course)
    assert weights(tmp_path) == weights(finished)


def test_the_command_line_knows_the_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", str(finished)]) == 0
    assert "trajectory.2" in capsys.readouterr().out


def test_the_job_comes_back_as_json(job: DictionaryJob) -> None:
    assert Job.from_json(job.to_json()) == job


def test_nothing_is_judged_on_what_it_was_fitted_to(reading: SceneReading, data: SceneData) -> None:
    splits = data.data.read(reading.model.module.settings.framing)
    assert not {scene.name for scene in splits.fit} & {scene.name for scene in splits.test}
    # one agent of each scene
    assert reading.test.scene.tolist() == list(range(len(splits.test)))
    assert len(reading.fit) > len(splits.fit)
    held = list(reading.held_out(11))
    assert [len(batch) for batch in held] == [8, 3]
    assert torch.equal(torch.cat([batch.origin for batch in held]), reading.test.origin[:11])


def test_every_epoch_shows_every_agent_once(reading: SceneReading) -> None:
    agents = reading.fit[slice(0, 19)]
    stream = SceneStream(agents, 6, 4, "cpu")
    epochs = [torch.cat([stream.next().origin[:, 0] for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert len(epoch.unique()) == 18
    assert not torch.equal(*epochs)
    state, following = stream.state(), stream.next()
    again = SceneStream(agents, 6, 4, "cpu")
    again.restore(state)
    assert torch.equal(again.next().origin, following.origin)
    with pytest.raises(ValueError, match="the stream has seed 5, the one to continue had seed 4"):
        SceneStream(agents, 6, 5, "cpu").restore(state)
    shares = [SceneStream(agents, 6, 4, "cpu", Share(rank, 2)).next().origin for rank in (0, 1)]
    first = SceneStream(agents, 6, 4, "cpu").next().origin
    assert torch.equal(shares[0], first[::2])
    assert torch.equal(shares[1], first[1::2])


def test_an_agent_in_words_and_numbers(reading: SceneReading) -> None:
    batch = reading.fit[slice(0, 1)]
    steps = batch.target.valid.shape[1]
    time = batch.dt * torch.arange(steps)
    velocity = torch.stack((12 - 2 * time, 0 * time), -1)
    still = dataclasses.replace(
        batch.target,
        velocity=velocity[None],
        heading=torch.zeros(1, steps),
        valid=torch.ones(1, steps, dtype=torch.bool),
        kind=torch.zeros(1, dtype=torch.int64),
    )
    caption = Captions(Vocabulary())(dataclasses.replace(batch, target=still), 0)
    mean = float(velocity[:, 0].mean())
    assert caption.startswith("a vehicle moving straight at ")
    assert caption.endswith(f", decelerating · {mean:.1f} m/s, -2.0 m/s², +0°")
    unknown = dataclasses.replace(still, valid=torch.zeros(1, steps, dtype=torch.bool))
    assert Captions(Vocabulary())(dataclasses.replace(batch, target=unknown), 0) == "a vehicle"


def test_what_is_missing_is_named(data: SceneData, tmp_path: Path) -> None:
    run = Run(tmp_path, Console(file=StringIO()))
    with pytest.raises(ValueError, match="holds no forecaster; give the folder of a words-in-motion run"):
        dataclasses.replace(data, forecaster=tmp_path).check()
    with pytest.raises(ValueError, match=r"a batch should have 1 … 20 agents, as many as there are; it has 21"):
        dataclasses.replace(data, batch=21).open(run)
    with pytest.raises(ValueError, match=r"data\.kind av2 needs data\.path"):
        dataclasses.replace(data, data=Data(kind="av2")).check()
    copy = shutil.copytree(data.forecaster, tmp_path / "copy")
    (copy / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is no complete safetensors file"):
        dataclasses.replace(data, forecaster=copy).open(run)


def test_kinds_are_compared_on_equal_terms(reading: SceneReading, tmp_path: Path) -> None:
    """All kinds go on from the same dictionary; one that changes nothing costs nothing."""
    moments = survey(reading.model, reading.sample(2), [SITE], reading.where)[SITE]
    begun = Dictionary(16, 12, TopK(2), mean=moments.mean, scale=moments.variance**0.5)
    begun.save(tmp_path / "begun.safetensors")
    run = Run(tmp_path, Console(file=StringIO()))
    trained = EndToEnd(steps=3, batch=8, rate=1e-9).train(run, reading, SITE, [tmp_path / "begun.safetensors"])
    found = compared(reading, trained)
    assert [row["kind"] for row in found["runs"]] == ["local", "e2e", "balanced"]
    assert found["clean"]["divergence"] == pytest.approx(0, abs=1e-6)
    divergences = [row["divergence"] for row in found["runs"]]
    assert divergences == pytest.approx([divergences[0]] * 3, rel=1e-3)
    assert [row["ratio"].mean for row in found["ratios"]] == pytest.approx([1, 1], rel=1e-3)

    whole = Dictionary(16, 32, TopK(32), seed=0)
    with torch.no_grad():
        for place in (whole.encoder, whole.decoder):
            place.copy_(torch.cat((torch.eye(16), -torch.eye(16))))
    copy = compared(reading, [dataclasses.replace(item, dictionary=whole) for item in trained])
    assert copy["ratios"] == []
    for row in copy["runs"]:
        assert row["divergence"] == pytest.approx(0, abs=1e-5)
        assert row["recovered"] == pytest.approx(1, abs=1e-4)
        assert row["min_ade"] == pytest.approx(copy["clean"]["min_ade"], abs=1e-4)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (
            {"mean": 0.5, "low": 0.4, "high": 0.6},
            "0.500 (0.400 to 0.600) times as far as through local ones: they stay",
        ),
        ({"mean": 2.0, "low": 1.5, "high": 2.5}, "times as far as through local ones: they stray farther."),
        ({"mean": 0.9, "low": 0.7, "high": 1.1}, "times as far as through local ones: no clear difference."),
        ({"mean": 0.9, "low": None, "high": None}, "0.900 times as far as through local ones, in one seed."),
    ],
)
def test_the_section_says_what_was_found(ratio: dict[str, float | None], verdict: str) -> None:
    names = ("divergence", "recovered", "min_ade", "explained_variance", "l0", "alive")
    runs = [
        {"kind": kind, "seed": seed, **dict.fromkeys(names, 1.5 + seed)} for kind in ("local", "e2e") for seed in (0, 1)
    ]
    plain = {"divergence": 0.0, "min_ade": 0.25}
    given = {
        "runs": runs,
        "tokens": 13_200,
        "clean": plain,
        "ablated": {"divergence": 9350.0, "min_ade": 15.75},
        "reference": "local",
        "ratios": [{"kind": "e2e", "ratio": ratio}],
        "kinds": {"local": "reconstruction error", "e2e": "divergence of forecasts"},
    }
    section = end_to_end({"end_to_end": given}, Palette.of(("local", "e2e")), "Held out.")
    said, table, every = section.blocks
    assert isinstance(said, Remarks)
    assert isinstance(table, Table)
    assert isinstance(every, Table)
    assert verdict in said.sentences[0]
    assert all(
        part in table.caption for part in ("13\u202f200 tokens", "0.250 m", "15.8 m", "9\u202f350 nats", "Held out.")
    )
    assert [row[1].text for row in table.rows] == ["2.00", "2.00"]
    assert len(every.rows) == 4


def test_settings_that_train_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="end_to_end: steps should not be negative"):
        EndToEnd(steps=-1)
    with pytest.raises(ValueError, match="a batch needs an agent, not 0"):
        SceneData(batch=0)
