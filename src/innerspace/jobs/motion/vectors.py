"""Control vectors of every feature by every method, and the dictionaries that refine them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, assert_never, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.convolutional import Convolutional, Kernels
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.koopman import Koopman
from innerspace.decompose.mixer import Mixer, Mixing
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.decompose.saved import load_autoencoder
from innerspace.decompose.sequence import SequenceAutoencoder, Sequencewise
from innerspace.harvest.sequences import Sequences
from innerspace.interventions import At, Fix, Splice
from innerspace.learn.callbacks import Checkpoint, DeadLatents
from innerspace.learn.dynamics import Ahead, Back, Consistency
from innerspace.learn.fit import Callback, FitConfig, fit
from innerspace.learn.objectives import GateReconstruction, Objective, Reconstruction, Sparsity
from innerspace.learn.solve import Method, bootstrap, contrast
from innerspace.learn.trials import local, sequences
from innerspace.measure.fidelity import row_fidelity
from innerspace.motion.framing import Batch
from innerspace.motion.losses import losses
from innerspace.motion.words import Feature, Labels
from innerspace.network.model import Interventions, Model
from innerspace.network.site import Where
from innerspace.value import Value

Kind = Literal["relu", "jumprelu", "gated", "topk", "batchtopk", "conv", "mixer", "sequence", "koopman"]

SEQUENTIAL: tuple[Kind, ...] = ("mixer", "sequence", "koopman")
"""The kinds that learn from whole sequences; all others learn from rows, each by itself."""

PLAIN: Method = "mean_difference"
"""The method with which all others are compared."""

OPTIMIZED = "optimized"
"""The method of vectors that are sought by what they do to forecasts, wherever methods are compared."""

FOR_CONTROL = (OPTIMIZED, PLAIN)
"""The methods by which a forecast is steered to a request, the better one first."""


@dataclass(frozen=True)
class Dictionaries(Value):
    """The autoencoders: one per kind and seed, all with ``latents`` latents.

    A kind is a nonlinearity of a fully connected one, or another encoder: ``conv``, along the features, and ``mixer``,
    along tokens and features, have a ReLU; ``sequence`` has one code for all tokens, of the ``k`` largest latents;
    ``koopman`` is dense, with constant operators. ``k`` is also TopK's and BatchTopK's; ``l1`` weighs the sparsity of
    ReLU and Gated, ``l0`` that of JumpReLU. A batch has ``batch`` rows, or as many sequences as have about so many.
    """

    kinds: tuple[Kind, ...] = ("relu", "jumprelu", "topk")
    latents: int = 128
    k: int = 8
    l1: float = 0.02
    l0: float = 0.0003
    kernels: Kernels = Kernels(size=64)
    mixing: Mixing = Mixing()
    batch: int = 512
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=1000, log_every=500))

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in get_args(Kind)]:
            raise ValueError(f"dictionaries: unknown kind {unknown[0]!r}; possible are {', '.join(get_args(Kind))}")

    def nonlinearity(self, kind: Kind) -> tuple[Nonlinearity, Objective]:
        """What makes the code sparse, and the objective that goes with it."""
        match kind:
            case "relu":
                return ReLU(), (Reconstruction(), Sparsity(self.l1))
            case "jumprelu":
                return JumpReLU(), (Reconstruction(), Sparsity(self.l0))
            case "gated":
                return Gated(), (Reconstruction(), GateReconstruction(), Sparsity(self.l1))
            case "topk" | "sequence":
                return TopK(self.k), (Reconstruction(),)
            case "batchtopk":
                return BatchTopK(self.k), (Reconstruction(),)
            case "conv" | "mixer":
                return ReLU(), (Reconstruction(), Sparsity(self.l1))
            case "koopman":
                raise ValueError("a Koopman autoencoder has a dense code, and no nonlinearity that makes it sparse")

    def objective(self, kind: Kind) -> Objective:
        """What a kind is trained on."""
        if kind == "koopman":
            return Reconstruction(), Ahead(), Back(), Consistency()
        return self.nonlinearity(kind)[1]

    def fresh(self, rows: Float[Tensor, "rows d"], kind: Kind, seed: int, whole: Sequences | None) -> Autoencoder:
        """One that has not learned anything yet, for the hidden states that it will be trained on."""
        if kind == "koopman":
            return Koopman.normalized_for(rows, self.latents, seed=seed)
        nonlinearity, _ = self.nonlinearity(kind)
        match kind:
            case "relu" | "jumprelu" | "gated" | "topk" | "batchtopk":
                return Dictionary.normalized_for(rows, self.latents, nonlinearity, seed=seed)
            case "conv":
                return Convolutional.normalized_for(rows, self.latents, nonlinearity, self.kernels, seed=seed)
            case "mixer":
                assert whole is not None
                states = whole.states, whole.valid
                return Mixer.normalized_for(*states, self.latents, nonlinearity, self.mixing, seed=seed)
            case "sequence":
                assert whole is not None
                return Sequencewise.normalized_for(whole.states, whole.valid, self.latents, nonlinearity, seed=seed)
            case _:
                assert_never(kind)

    def place(self, folder: Path, kind: Kind, seed: int) -> Path:
        """The file of one of them."""
        return folder / f"{kind}-{seed}.safetensors"

    def train(
        self, rows: Float[Tensor, "rows d"], kind: Kind, seed: int, folder: Path, whole: Sequences | None = None
    ) -> Autoencoder:
        """Train one, or take it from the folder where it lies complete or begun.

        Raises:
            ValueError: for a kind that learns from whole sequences, if there are none.
        """
        path = self.place(folder, kind, seed)
        if path.is_file():
            return load_autoencoder(path)
        if kind in SEQUENTIAL and whole is None:
            raise ValueError(f"a dictionary of kind {kind!r} learns from whole sequences, and only rows are given")
        what = self.fresh(rows, kind, seed, whole)
        every = max(1, self.fit.steps // 8)
        snapshot = folder / f"{kind}-{seed}.snapshot"
        callbacks: list[Callback] = [Checkpoint(snapshot, every)]
        if kind in SEQUENTIAL:
            assert whole is not None
            long = float(whole.valid.sum(-1).float().mean())
            trials = sequences(whole, min(max(1, round(self.batch / long)), len(whole)), seed)
        else:
            batch = min(self.batch, len(rows))
            trials = local(rows, batch, seed)
            if isinstance(what, Dictionary):
                callbacks.insert(0, DeadLatents(every, after=every * batch // 2))
        fit(what, trials, self.objective(kind), self.fit, callbacks)
        what.save(path)
        snapshot.unlink()
        return what


@dataclass(frozen=True, eq=False)
class Fitted:
    """A control vector: one direction, how it came about, and the seed of its resampled scenes and its dictionary."""

    direction: Directions
    feature: Feature
    method: str
    seed: int

    @property
    def along(self) -> Float[Tensor, "d"]:
        """What τ = 1 adds: one class-mean gap."""
        return self.direction.directions[0]


def fit_vectors(
    rows: Float[Tensor, "n d"],
    labels: Labels,
    groups: Int[Tensor, "n"],
    origin: Origin,
    methods: Sequence[Method],
    dictionaries: Mapping[tuple[Kind, int], Autoencoder],
    seeds: int,
    whole: Sequences | None = None,
    *,
    repeated: bool = False,
) -> Iterator[Fitted]:
    """Vectors of all features: each method once on all rows, then plain and refined ones by seed.

    With ``repeated`` all methods are repeated by seed, not only the first of them.

    Seed 0 sees all scenes, further seeds see scenes drawn with replacement, so the spread over seeds is that of the
    data (and, for refined vectors, of the dictionary's training). A feature whose opposing classes are not both
    present is left out; the caller says so. ``whole`` are the sequences in which the rows stand, for dictionaries that
    read them.
    """
    for feature in labels.vocabulary.features:
        if missing_classes(labels, feature):
            continue
        for seed in range(seeds):
            chosen = _draw(labels, feature, groups, seed)
            x, y = rows[chosen], labels.classes[feature.name][chosen]
            named = replace(origin, feature=feature.name, positive=feature.positive, negative=feature.negative)

            def contrasted(method: Method, **extra: Any) -> Directions:
                return contrast(x, y, feature.classes, named, method, **extra)  # noqa: B023

            for method in methods if seed == 0 or repeated else methods[:1]:
                if method == "regression":
                    if feature.name not in labels.targets:
                        continue
                    target = labels.targets[feature.name][chosen]
                    yield Fitted(contrasted(method, target=target), feature, method, seed)
                else:
                    yield Fitted(contrasted(method), feature, method, seed)
            for (kind, number), dictionary in dictionaries.items():
                if number == seed:
                    reads = isinstance(dictionary, SequenceAutoencoder)
                    within = whole[chosen] if reads and whole is not None else None
                    yield Fitted(contrasted("through", dictionary=dictionary, within=within), feature, kind, seed)


def _draw(labels: Labels, feature: Feature, groups: Int[Tensor, "n"], seed: int) -> Int[Tensor, "m"]:
    """All rows for seed 0; for others scenes drawn with replacement, again where an opposing class is missing."""
    classes = labels.classes[feature.name]
    if not seed:
        return torch.arange(len(classes))
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = bootstrap(len(classes), generator, groups)
        if all((classes[chosen] == feature.index(word)).any() for word in (feature.negative, feature.positive)):
            return chosen


def vectors_of(folder: Path, model: Model) -> Directions:
    """The control vectors of a finished run, for its own forecaster.

    Raises:
        ValueError: if there are none, or they belong to another network or to a site that this one does not have.
    """
    path = folder / "directions.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} holds no complete run: there is no directions.safetensors")
    directions = Directions.load(path)
    own = model.fingerprint()
    if strangers := [origin.model for origin in directions.origins if origin.model != own]:
        raise ValueError(f"the vectors in {folder} were fitted to model {strangers[0]}, this is {own}")
    for site in dict.fromkeys(origin.site for origin in directions.origins):
        width = model.site(site).width
        if directions.width != width:
            raise ValueError(
                f"{path} holds directions of width {directions.width}, the hidden state at {site!r} has {width}"
            )
    return directions


def missing_classes(labels: Labels, feature: Feature) -> list[str]:
    """The opposing classes of a feature that have fewer than two members."""
    counts = labels.counts()[feature.name]
    return [name for name in (feature.negative, feature.positive) if counts[name] < 2]


def judge_dictionaries(
    model: Model,
    site: str,
    dictionaries: Mapping[tuple[Kind, int], Autoencoder],
    rows: Float[Tensor, "n d"],
    batches: Sequence[Batch],
    mean: Float[Tensor, "d"],
    whole: Sequences | None = None,
) -> list[dict[str, Any]]:
    """Fidelity on held-out rows, or sequences for what reads them, and the forecast loss with the reconstruction in it.

    ``recovered`` is 1 where the spliced loss equals the clean one, 0 where it equals that of mean ablation.
    """
    valid = Where("valid")
    clean = forecast_loss(model, batches, {})
    ablated = forecast_loss(model, batches, {site: At(valid, Fix(mean))})
    table = list[dict[str, Any]]()
    for (kind, seed), dictionary in dictionaries.items():
        reads = isinstance(dictionary, SequenceAutoencoder)
        found = row_fidelity(dictionary, whole if reads and whole is not None else rows)
        spliced = forecast_loss(model, batches, {site: At(valid, Splice(dictionary))})
        table.append(
            {
                "kind": kind,
                "latents": dictionary.latents,
                "seed": seed,
                "explained": found.explained_variance,
                "l0": found.l0,
                "alive": found.alive,
                "loss_clean": clean,
                "loss_spliced": spliced,
                "loss_mean_ablated": ablated,
                "recovered": (ablated - spliced) / (ablated - clean),
            }
        )
    return table


@torch.no_grad()
def forecast_loss(model: Model, batches: Sequence[Batch], interventions: Interventions) -> float:
    """The forecaster's own loss under interventions, averaged over batches by their rows."""
    total = sum(float(losses(model.run(batch, interventions).output, batch).mean()) * len(batch) for batch in batches)
    return total / sum(len(batch) for batch in batches)
