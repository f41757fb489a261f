"""What a run studied: its network, the data that it held out, and the dictionaries and subspaces in its folder."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

import torch

from innerspace.app.held import Held
from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.base import Decomposition, Home, check_place
from innerspace.decompose.saved import load
from innerspace.decompose.sequence import SequenceAutoencoder
from innerspace.decompose.subspaces import Subspaces
from innerspace.jobs.compare import Compare
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.dictionary import DictionaryJob
from innerspace.jobs.explain import Explain
from innerspace.jobs.inputs.scenes import Captions, SceneData, SceneReading, first_of_each_scene
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.pareto import Pareto
from innerspace.jobs.subspaces import SubspacesJob
from innerspace.language.causal_lm import load as load_language_model
from innerspace.language.causal_lm import tokenize
from innerspace.language.layout import layout
from innerspace.language.pieces import Pieces
from innerspace.language.shards import TokenShards
from innerspace.language.text import Text
from innerspace.measure.activations import Caption
from innerspace.motion.forecasters.known import load as load_forecaster
from innerspace.motion.framing import Framing, frame
from innerspace.network.model import Model
from innerspace.network.site import Where

LANGUAGE = "it needs a run on a language model; innerspace run stories-pareto makes one"
DICTIONARIES = "it needs dictionaries; innerspace run stories-pareto or words-in-motion makes some"
SUBSPACES = "it needs subspaces and held-out states; innerspace run subspaces-stories or innerspace demo makes some"
"""What a tab says of a run without what it shows, with the command that makes it."""

WAITING = '<p class="quiet">Reading what was held out …</p>'
"""What is shown until there is something to show."""

SEQUENCES, AGENTS = 64, 400
"""How much of what was held out is looked through: sequences of text, or agents."""

LETTERS, TOKENS = 400, 200
"""How long a typed text may be, in letters and in tokens."""


@final
@dataclass(frozen=True, eq=False)
class Saved:
    """A dictionary or a partition in the run's folder: its name, site, kind of training (with coefficient) and seed."""

    name: str
    site: str
    kind: str
    seed: int
    file: Path


@final
class Studied:
    """A run's network and what was found in it; everything large is read when it is first asked for.

    ``alone`` is held while the network runs: hooks stand on it meanwhile.

    Raises:
        ValueError: for a run on nothing that is known here, or a network that is missing or damaged.
    """

    def __init__(self, run: Held) -> None:
        self.run, self.alone = run, threading.RLock()
        self.data = data_of(run)
        if isinstance(self.data, TextData):
            loaded = load_language_model(
                self.data.model, revision=self.data.revision, ignore_special=self.data.ignore_special
            )
            self.model, self.where, self._framing = loaded.model, self.data.where, Framing()
            self.tokenizer: Any = loaded.tokenizer
        else:
            network = load_forecaster(self.data.forecaster)
            self.model, self.where = Model(network, network.settings.family), Where("valid")
            self.tokenizer, self._framing = None, network.settings.framing
        self.pieces = Pieces(self.tokenizer)
        # explanations may be of the dictionaries of another run
        other = run.job.folder if isinstance(run.job, Explain) else None
        self.dictionaries = _saved((other or run.folder) / "dictionaries", self.model, self._site)
        self.partitions = _saved(run.folder / "subspaces", self.model, self._site)
        self._loaded, self._print = dict[str, Decomposition](), ""
        self._scenes: SceneReading | None = None

    @property
    def is_text(self) -> bool:
        """Whether the network reads text."""
        return isinstance(self.data, TextData)

    def decomposition(self, name: str) -> Decomposition:
        """A dictionary or a partition by its name.

        Raises:
            ValueError: for a name that there is not, or a file that is damaged or belongs to another network or site.
        """
        self.run.require()
        found = {one.name: one for one in (*self.dictionaries, *self.partitions)}
        if name not in found:
            raise ValueError(f"the run holds nothing called {name[:80]!r}; there are {', '.join(found)}")
        with self.alone:
            if name not in self._loaded:
                self._print = self._print or self.model.fingerprint()
                what, site = load(found[name].file), self.model.site(found[name].site)
                home = what.home if isinstance(what, Autoencoder | Subspaces) else None
                check_place(what.directions.shape[1], home, Home(self._print, site.name), site.width)
                self._loaded[name] = what.eval()
            return self._loaded[name]

    def site_of(self, name: str) -> str:
        """The site of a dictionary or a partition."""
        return next(one.site for one in (*self.dictionaries, *self.partitions) if one.name == name)

    def rowwise(self, name: str) -> Autoencoder:
        """A dictionary that reads every hidden state by itself.

        Raises:
            ValueError: as ``decomposition``, and for one that reads several tokens together.
        """
        what = self.decomposition(name)
        if isinstance(what, SequenceAutoencoder) or not isinstance(what, Autoencoder):
            raise ValueError(f"{name} reads several tokens together, and its latents are not shown one by one")
        return what

    def partition(self, name: str) -> Subspaces:
        """A partition.

        Raises:
            ValueError: as ``decomposition``, and for anything else.
        """
        what = self.decomposition(name)
        if not isinstance(what, Subspaces):
            raise ValueError(f"{name} is no partition; there are {', '.join(one.name for one in self.partitions)}")
        return what

    def held_out(self) -> list[Any]:
        """Batches of what the run held out, some of it where there is much.

        Raises:
            ValueError: where it can no longer be read.
        """
        self.run.require()
        if isinstance(self.data, TextData):
            return self.texts(SEQUENCES)
        return list(self.scenes().held_out(AGENTS))

    def texts(self, count: int) -> list[Text]:
        """The first held-out sequences, from the tokens in the run's folder."""
        assert isinstance(self.data, TextData)
        shards, size = TokenShards.open(self.run.folder / "tokens"), self.data.batch
        count = min(count, shards.sequences("held_out"))
        numbers = torch.arange(count)
        return [shards.rows("held_out", numbers[start : start + size]) for start in range(0, count, size)]

    def typed(self, text: str) -> Text:
        """A text from a reader as a batch of one, begun as the network was given its own.

        Raises:
            ValueError: for an empty text, one that is too long, or one with a word that is no token.
        """
        data, tokenizer, words = self.data, self.tokenizer, text.strip()
        assert isinstance(data, TextData)
        if not words:
            raise ValueError("the text is empty: type some words")
        if len(words) > LETTERS:
            raise ValueError(f"the text has {len(words):,} letters; at most {LETTERS} are read here")
        batch = tokenize(tokenizer, [words], bos="tokenizer" if data.corpus.bos == "none" else "always")
        if (unknown := tokenizer.unk_token_id) is not None and (batch.ids == unknown).any():
            strange = [word for word in words.split() if unknown in tokenizer.encode(word, add_special_tokens=False)]
            raise ValueError(f"the tokenizer knows no token for {', '.join(map(repr, strange[:4])) or 'a part of it'}")
        most = min(TOKENS, layout(self.model.module).longest or TOKENS)
        if (count := batch.ids.shape[1]) > most:
            raise ValueError(f"the text has {count} tokens; at most {most} are read here")
        return batch

    def scenes(self) -> SceneReading:
        """The forecaster with an agent of each held-out scene; read once, which takes a while."""
        data = self.data
        assert isinstance(data, SceneData)
        with self.alone:
            if self._scenes is None:
                splits = data.data.read(self._framing)
                test = first_of_each_scene(frame(splits.test, self._framing))
                # nothing is fitted here, so that nothing else needs framing
                size = min(50, len(test))
                self._scenes = SceneReading(
                    self.model, test, test, splits.description, data.vocabulary, size, data.device
                )
            return self._scenes

    @property
    def caption(self) -> Caption | None:
        """What describes an agent; text speaks for itself."""
        return Captions(self.data.vocabulary) if isinstance(self.data, SceneData) else None

    @property
    def unit(self) -> str:
        """What it is that has a hidden state, in the plural."""
        return "tokens" if self.is_text else "steps of agents"

    def _site(self, name: str) -> str:
        """The site in the name of a file, by default the run's own."""
        named = [site for site in self.model.sites if name.startswith(f"{site}-")]
        job = self.run.job
        return named[0] if named else job.site if isinstance(job, WordsInMotion | Compare | Pareto | Explain) else ""


_KNOWN = WeakKeyDictionary[Held, Studied]()
_FIRST = threading.Lock()


def studied(run: Held) -> Studied:
    """What a run studied, the same for all tabs.

    Raises:
        ValueError: as ``Studied``.
    """
    with _FIRST:
        if run not in _KNOWN:
            _KNOWN[run] = Studied(run)
        return _KNOWN[run]


def data_of(run: Held) -> TextData | SceneData:
    """The network and the data of a run.

    Raises:
        ValueError: for a job that says neither.
    """
    match run.job:
        case DictionaryJob() | Pareto() | SubspacesJob() | Compare() | Explain():
            return run.job.data
        case WordsInMotion():
            return SceneData(run.folder, run.job.data, run.job.vocabulary)
        case _:
            raise ValueError(f"a run of {type(run.job).__name__} holds none; innerspace run stories-pareto makes some")


def lacking(run: Held) -> str:
    """Why nothing of a run can be studied, in a clause; empty where it can."""
    try:
        if isinstance(data_of(run), TextData) and run.lacks("tokens/manifest.json"):
            return "the run has no tokens yet: let innerspace run go on with it"
        studied(run)
    except ValueError as error:
        return str(error)
    return ""


def code_of(run: Held, files: Mapping[str, Path]) -> str:
    """The lines of a program that load a run's network and the decompositions in ``files``, by names of variables."""
    data, lines = data_of(run), [f"run = Path({str(run.folder)!r})"]
    if isinstance(data, TextData):
        lines += [
            f"loaded = load_language_model({data.model!r}, revision={data.revision!r}, "
            f"ignore_special={data.ignore_special})",
            "model, tokenizer = loaded.model, loaded.tokenizer",
        ]
    else:
        lines.append(f"model = load_model(Path({str(data.forecaster)!r}))")
    for variable, file in files.items():
        own = file.is_relative_to(run.folder)
        place = f"run / {str(file.relative_to(run.folder))!r}" if own else f"Path({str(file)!r})"
        lines.append(f"{variable} = load({place})")
    return "\n".join(lines)


def code_imports(run: Held) -> str:
    """The imports that ``code_of`` needs."""
    if isinstance(data_of(run), TextData):
        return "from innerspace.language.causal_lm import load as load_language_model"
    return "from innerspace.motion.forecasters.known import load_model"


def _saved(folder: Path, model: Model, site_of: Callable[[str], str]) -> list[Saved]:
    """What lies in a folder, by site, seed and kind, local ones first; files of no site of this model are left out."""
    found = list[Saved]()
    for path in sorted(folder.glob("*.safetensors")):
        site, (kind, _, seed) = site_of(path.stem), path.stem.rpartition("-")
        if site in model.sites and seed.isascii() and seed.isdigit():
            kind = "parts" if kind == site else kind.removeprefix(f"{site}-")
            found.append(Saved(path.stem, site, kind, int(seed), path))

    def order(one: Saved) -> tuple[str, int, bool, str, str]:
        return one.site, one.seed, not one.kind.startswith("local"), one.kind.partition("-")[0], one.kind

    return sorted(found, key=order)


def choices(saved: Sequence[Saved]) -> list[tuple[str, str]]:
    """Names to choose from, as people read them."""
    many = len({one.seed for one in saved}) > 1
    return [(f"{one.kind} at {one.site}" + (f", seed {one.seed}" if many else ""), one.name) for one in saved]
