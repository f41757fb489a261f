"""What the README and the page of errors promise: the examples run, and every message can be met."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from families import CASES, EncoderFamily
from innerspace.decompose.base import Home
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.nonlinearities import ReLU
from innerspace.interventions import At, Read, Steer
from innerspace.jobs.inputs.data import Data, read_source
from innerspace.jobs.inputs.scenes import SceneData
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.job import Job, Run, execute
from innerspace.jobs.motion.vectors import vectors_of
from innerspace.language.corpora import Corpus, prepare
from innerspace.language.sources import Texts
from innerspace.learn.fit import FitConfig, fit
from innerspace.learn.objectives import OutputKL, Reconstruction
from innerspace.learn.steering_vectors import Wanted, optimize_vectors
from innerspace.learn.trials import local
from innerspace.measure.steering import respond
from innerspace.motion import argoverse
from innerspace.motion.argoverse import Argoverse2
from innerspace.motion.forecasters.wayformer import WayformerSettings
from innerspace.motion.framing import Framing
from innerspace.motion.instructions import require, understand
from innerspace.motion.scenario_arrays import ScenarioArrays
from innerspace.motion.scene_writing import write_store
from innerspace.motion.sources import load
from innerspace.network.model import Model
from innerspace.network.site import Site, Where
from innerspace.recipes.words_in_motion import job
from scene_sources import RandomScenes

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def run_example(number: int) -> dict[str, Any]:
    names = dict[str, Any]()
    exec(compile(EXAMPLES[number], f"README.md, example {number}", "exec"), names)
    return names


def test_any_network_can_be_read_and_steered() -> None:
    found = run_example(0)
    clean, steered = found["clean"], found["steered"]
    assert clean.hidden["hidden"].shape == (8, 5, 16)
    change = steered.hidden["hidden"] - clean.hidden["hidden"]
    assert torch.equal(change[:, :-1], torch.zeros(8, 4, 16))
    torch.testing.assert_close(change[:, -1], torch.full((8, 16), 0.5))
    moved = (steered.output["y"] != clean.output["y"]).any(-1)
    assert moved.tolist() == [[False] * 4 + [True]] * 8


def test_a_forecaster_is_read_in_words_and_steered() -> None:
    found = run_example(1)
    assert found["rows"].shape == (len(found["fit"]), 64)
    origin = found["speed"].origins[0]
    assert (origin.negative, origin.positive, origin.method) == ("low", "high", "mean_difference")
    assert found["before"].shape == (len(found["test"]),)
    assert (found["before"] != found["after"]).double().mean() > 0.9


def test_dictionaries_of_a_language_model_are_trained_together() -> None:
    found = run_example(2)
    history, students = found["loop"].history, found["students"]
    assert [record["step"] for record in history if record["student"] == "e2e"] == [5, 10, 15, 20]
    assert found["output"].shape == (4, 16, 100)
    assert found["tokens"].shape == (4, 20)
    assert not torch.equal(students[0].what.decoder, students[1].what.decoder)


def test_parts_of_a_hidden_space_are_exchanged() -> None:
    found = run_example(3)
    assert sum(found["found"].sizes) == 32
    assert len(found["effects"].parts) == len(found["found"].sizes)
    assert found["effects"].rows == 64
    assert found["moved"].shape == (64, 16, 100)


def test_circuits_are_found_and_latents_explained() -> None:
    found = run_example(4)
    assert len(found["circuit"].nodes) == 16
    assert found["circuit"].edges
    assert [one.latent for one in found["found"].explained] == [3, 17, 42]


def test_there_is_no_other_example() -> None:
    assert len(EXAMPLES) == 5


def test_the_flags_of_the_readme_exist() -> None:
    flags = set(re.findall(r"--data\.([\w-]+)", (ROOT / "README.md").read_text()))
    known = {*Data.__dataclass_fields__, *SceneData.__dataclass_fields__, *TextData.__dataclass_fields__}
    assert flags <= {name.replace("_", "-") for name in known}


def test_the_settings_of_a_run_can_be_read_again(tmp_path: Path) -> None:
    job.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json") == job


class Inside(EncoderFamily):
    def sites(self, module: torch.nn.Module) -> list[Site]:
        # attention uses the weights of out_proj without calling it
        return [Site("out", "layers.0.self_attn.out_proj", 8)]


@dataclass(frozen=True)
class Nothing(Job):
    scenes: int = 1

    def check(self) -> None:
        pass

    def run(self, run: Run) -> Path:
        return run.folder


def never_came_up(folder: Path) -> None:
    case = CASES["encoder"]()
    Model(case.model.module, Inside()).run(case.batch, {"out": Read()})


def came_up_twice(folder: Path) -> None:
    class Twice(EncoderFamily):
        def forward(self, module: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
            return {"y": module(module(batch["x"]))}

    case = CASES["encoder"]()
    Model(case.model.module, Twice()).run(case.batch, {"layer.0": Read()})


def no_such_site(folder: Path) -> None:
    CASES["blocks"]().model.site("frist")


def another_width(folder: Path) -> None:
    case = CASES["blocks"]()
    case.model.run(case.batch, {"first": Steer(torch.ones(9), 1.0)})


def padding_unknown(folder: Path) -> None:
    case = CASES["blocks"]()
    with case.model.under({"first": At(Where("valid"), Steer(torch.ones(8), 1.0))}):
        case.model.module(case.batch["x"])


def other_settings(folder: Path) -> None:
    for scenes in (1, 2):
        execute(Nothing(scenes), folder / "run", Console())
        (folder / "run" / "log.jsonl").touch()


def no_run(folder: Path) -> None:
    (folder / "notes.txt").touch()
    execute(Nothing(), folder, Console())


def one_log(folder: Path) -> None:
    (folder / "annotations.feather").touch()
    Data("av2", folder).read(Framing())


def no_extra(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argoverse, "find_spec", lambda _: None)
        Argoverse2(folder).records()


def skipped(folder: Path) -> None:
    pytest.importorskip("pyarrow", reason="reading needs the extra 'motion'")
    (folder / "scenario_1.parquet").touch()
    loaded = load(Argoverse2(folder))
    assert not loaded.scenes
    (skip,) = loaded.skipped
    raise ValueError(f"skipped {skip.name}: {skip.reason}")


def unknown_source(folder: Path) -> None:
    read_source(f"Argoverse3:{folder}")


def unknown_field(folder: Path) -> None:
    job.save(folder / "job.json")
    text = (folder / "job.json").read_text()
    (folder / "job.json").write_text(text.replace('"points"', '"gaps"'))
    Job.load(folder / "job.json")


def another_source(folder: Path) -> None:
    for count in (6, 7):
        write_store(RandomScenes(count), folder / "store", workers=0)


def few_groups(folder: Path) -> None:
    Data("recorded", source=RandomScenes(6)).read(Framing())


def two_rates(folder: Path) -> None:
    write_store(RandomScenes(6, faster=4), folder / "store", workers=0)


def pickled(folder: Path) -> None:
    (folder / "sd_waymo.pkl").touch()
    ScenarioArrays(folder).records()


def another_home(folder: Path) -> None:
    Dictionary(8, 16, ReLU(), home=Home("a" * 16, "resid.1")).check("a" * 16, "resid.2", 8)


def without_zero(folder: Path) -> None:
    case = CASES["blocks"]()
    respond(
        case.model, [case.batch], "first", torch.ones(8), torch.linspace(-0.3, 0.3, 7), nothing_read, torch.arange(2)
    )


def nothing_read(steered: Any, clean: Any, batch: Any) -> dict[str, torch.Tensor]:
    return {}


def another_model(folder: Path) -> None:
    origin = Origin("speed", positive="high", negative="low", site="first", model="a" * 16)
    Directions(torch.ones(1, 8), torch.ones(1), [origin]).save(folder / "directions.safetensors")
    vectors_of(folder, CASES["blocks"]().model)


def no_vector(folder: Path) -> None:
    require(understand("slower and turn left"), ["speed"])


def not_understood(folder: Path) -> None:
    understand("make the vehicle fly")


def said_twice(folder: Path) -> None:
    understand("slower and faster")


def no_readout(folder: Path) -> None:
    case = CASES["blocks"]()

    def measured(output: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"heading": output["y"].sum((-1, -2))}

    optimize_vectors(case.model, [case.batch], "first", measured, [Wanted("direction", 1.0)], torch.ones(1, 8))


def uneven_heads(folder: Path) -> None:
    WayformerSettings(width=64, heads=3)


def short_text(folder: Path) -> None:
    corpus = Corpus(Texts(("w1 w2 w3",)), 3, "none", eos=False, held_out=0.0)
    vocabulary = {"<unk>": 0, "w1": 1, "w2": 2, "w3": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    shards = prepare(corpus, PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), folder / "tokens")
    shards.check("train", 8)


def rows_alone(folder: Path) -> None:
    fit(Dictionary(3, 8, ReLU()), local(torch.randn(20, 3), 5, 0), (OutputKL(),), FitConfig(steps=1))


def diverged(folder: Path) -> None:
    stream = local(torch.randn(20, 3), 5, 0)
    with torch.enable_grad():
        what = Dictionary(3, 8, ReLU())
        what.encoder_bias.data.fill_(torch.inf)
        fit(what, stream, (Reconstruction(),), FitConfig(steps=1))


MESSAGES: dict[str, Callable[[Path], None]] = {
    "never came up in the pass": never_came_up,
    "came up more than once in one pass": came_up_twice,
    "no site is called": no_such_site,
    "the direction has width": another_width,
    "depends on the batch: give it": padding_unknown,
    "holds a run with other settings": other_settings,
    "holds no run": no_run,
    "skipped": skipped,
    "at least two usable sensor logs are needed": one_log,
    "unknown class": unknown_source,
    "unknown field": unknown_field,
    "holds scenes of another source": another_source,
    "groups are too few to split": few_groups,
    "scenes of one sampling rate are needed": two_rates,
    "pip install 'innerspace[": no_extra,
    "is a pickle: to open it is to run what it says": pickled,
    "the decomposition was fitted at": another_home,
    "τ = 0 is the baseline": without_zero,
    "were fitted to model": another_model,
    "no vector steers": no_vector,
    "is not understood": not_understood,
    "both speak of": said_twice,
    "there is no readout": no_readout,
    "should divide width": uneven_heads,
    "a batch should have 1 …": short_text,
    "rows alone do not tell": rows_alone,
    "is not finite at step": diverged,
}


def test_every_message_has_its_entry() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_can_be_met(message: str, tmp_path: Path) -> None:
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError), match=re.escape(message)):
        MESSAGES[message](tmp_path)
