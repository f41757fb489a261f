"""Dictionaries of a language model, from a folder of weights and a file of text to the page."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from innerspace.cli import main
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import TopK
from innerspace.jobs.dictionaries.lessons import Course, Lesson
from innerspace.jobs.dictionary import DictionaryJob, Showing
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.job import execute
from innerspace.jobs.pareto import Pareto
from innerspace.language.causal_lm import load
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Files
from innerspace.learn.fit import FitConfig
from innerspace.learn.objectives import AuxK, Downstream, OutputKL, Reconstruction, Sparsity
from innerspace.value import read_json

WORDS = 60
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama, its tokenizer, and 80 documents of a Markov chain of words."""
    folder = tmp_path_factory.mktemp("language")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    config = transformers.LlamaConfig(
        vocab_size=WORDS + 3,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(1)
    documents = list[str]()
    for _ in range(80):
        word, words = 0, list[str]()
        for jump in torch.randint(0, 4, (60,), generator=generator).tolist():
            word = (3 * word + jump) % WORDS
            words.append(f"w{word}")
        documents.append(" ".join(words))
    (folder / "text.json").write_text(json.dumps(documents))
    return folder


def text(place: Path) -> TextData:
    source = Files((place / "text.json",))
    return TextData(str(place / "model"), corpus=Corpus(source, 16, "sequence", eos=False, held_out=0.2), batch=8)


def course(tokens: int = 128 * 24) -> Course:
    return Course(tokens=tokens, fit=FitConfig(rate=3e-3, log_every=4), together=4, snapshots=3, surveyed=4)


def lessons() -> tuple[Lesson, ...]:
    size = {"latents": 48, "nonlinearity": TopK(4)}
    return (
        Lesson("resid.1", "local", objective=(Reconstruction(), AuxK(4, after=500)), **size),
        Lesson("mlp.1", "e2e", objective=(OutputKL(),), **size),
        Lesson("resid.1", "warm", objective=(OutputKL(), Downstream(("resid.2",))), begins="resid.1-local-0", **size),
        Lesson("resid.1", "relu", 0.05, objective=(Reconstruction(), Sparsity(0.05)), latents=48),
    )


@pytest.fixture(scope="session")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dictionaries"
    job = DictionaryJob(text(place), lessons(), course(), Showing(sequences=16, features=6))
    execute(job, folder, Console(file=StringIO()))
    return folder


def test_the_report_holds_every_section(finished: Path) -> None:
    report = read_json(finished / "report.json")
    assert {"training", "training_cost", "fidelity", "features", "geometry", "provenance", "job"} <= set(report)
    kinds = [row["kind"] for row in report["fidelity"]]
    assert kinds == ["local", "e2e", "warm", "relu"]
    for row in report["fidelity"]:
        assert row["ce_increase"]["mean"] == pytest.approx(
            row["ce_spliced"]["mean"] - row["ce_clean"]["mean"], abs=1e-4
        )
        if row["kind"] != "relu":
            assert 0 < row["l0"]["mean"] <= 4
    for row in report["training_cost"]:
        assert row["flops_per_token"] == pytest.approx(sum(row["flops_parts"].values()))
        assert row["tokens"] == 128 * 24
    assert all(row["curves"]["held_out_kl"][-1] > 0 for row in report["training"])
    assert (finished / "report.html").stat().st_size > 10_000


def test_dictionaries_know_where_they_belong(finished: Path, place: Path) -> None:
    dictionary = Dictionary.load(finished / "dictionaries" / "mlp.1-e2e-0.safetensors")
    model = load(place / "model").model
    dictionary.check(model.fingerprint(), "mlp.1", 16)
    with pytest.raises(ValueError, match=r"fitted at 'mlp.1' of the network \w+, this is 'mlp.0'"):
        dictionary.check(model.fingerprint(), "mlp.0", 16)


def test_a_warm_start_begins_with_the_other_lesson(finished: Path, place: Path, tmp_path: Path) -> None:
    """After no more than one step at a tiny rate the dictionary is still the one it began with."""
    begun = Dictionary.load(finished / "dictionaries" / "resid.1-local-0.safetensors")
    lesson = Lesson(
        "resid.1",
        "warm",
        objective=(OutputKL(),),
        begins=str(finished / "dictionaries" / "resid.1-local-0.safetensors"),
        rate=1e-6,
    )
    job = DictionaryJob(text(place), (lesson,), course(128), Showing(sequences=8, features=2))
    execute(job, tmp_path / "run", Console(file=StringIO()))
    warm = Dictionary.load(tmp_path / "run" / "dictionaries" / "resid.1-warm-0.safetensors")
    torch.testing.assert_close(warm.decoder, begun.decoder, atol=1e-5, rtol=0)
    assert not torch.equal(warm.decoder, begun.decoder)


def test_a_finished_run_is_not_trained_again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in (copy / "dictionaries").iterdir()}
    monkeypatch.setattr("innerspace.jobs.dictionaries.lessons.fit_together", lambda *_: pytest.fail("trained again"))
    execute(DictionaryJob.load(copy / "job.json"), copy, Console(file=StringIO()))
    assert {path.name: path.read_bytes() for path in (copy / "dictionaries").iterdir()} == before


def test_the_comparison_of_kinds(place: Path, tmp_path: Path, capsys: Capture) -> None:
    job = Pareto(
        text(place),
        site="resid.0",
        latents=48,
        local=(0.02, 0.3),
        e2e=(0.02, 0.3),
        e2e_ds=(0.02, 0.3),
        seeds=2,
        course=course(),
        showing=Showing(sequences=16, features=3),
    )
    job.save(tmp_path / "pareto.json")
    assert main(["run", str(tmp_path / "pareto.json"), "--name", "pareto", "--runs", str(tmp_path / "runs")]) == 0
    assert "report: " in capsys.readouterr().out
    report = read_json(tmp_path / "runs" / "pareto" / "report.json")
    rows = report["pareto"]["runs"]
    assert len(rows) == 12
    assert {(row["kind"], row["seed"]) for row in rows} == {(k, s) for k in ("local", "e2e", "e2e+ds") for s in (0, 1)}
    for row in rows:
        same = [other for other in rows if (other["kind"], other["seed"]) == (row["kind"], row["seed"])]
        weak, strong = sorted(same, key=lambda item: item["coefficient"])
        assert weak["l0"] > strong["l0"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.model", "/nowhere/at/all"], "nowhere"),
        (["--data.corpus.source.paths", "/nowhere/text.json"], "nowhere"),
        (["--site", "resid.9"], "no site is called 'resid.9'"),
        (["--data.batch", "5000"], "not 5000"),
        (["--data.device", "cuda:7"], "no CUDA device is there"),
        (["--seeds", "0"], "seeds should be at least 1"),
        (["--site", "resid.2"], "no block follows 'resid.2'"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    flags: list[str], message: str, place: Path, tmp_path: Path, capsys: Capture
) -> None:
    job = Pareto(text(place), "resid.0", 48, course=course(), showing=Showing(16, 3))
    job.save(tmp_path / "job.json")
    assert main(["run", str(tmp_path / "job.json"), "--name", "bad", "--runs", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("bad/dictionaries/*"))
