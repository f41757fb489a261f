"""A sweep: control vectors of several forecasters, sites, token rules, methods and sizes, judged on the same scenes.

Asks of Words in Motion (Tas and Wagner, ICLR 2025) what can be asked of many vectors only: which way of fitting acts
most linearly and with the least side effects, where in the network, and whether refining a vector by a sparse
autoencoder makes its response more linear. A forecaster runs once for all rules and methods, and all vectors of a site
branch off from the same unsteered passes. Of the test split, to which nothing was fitted, one half chooses the best way
of every forecaster, and only the other half tells what it does. Every vector is one line of ``cells.jsonl``; an
interrupted sweep goes on behind the last of them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from rich.markup import escape
from torch import Tensor

from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.directions import Origin
from innerspace.decompose.sequence import SequenceAutoencoder
from innerspace.harvest.sequences import Sequences, gather_sequences
from innerspace.harvest.stream import TokenRule, gather_by
from innerspace.jobs.inputs.data import Data
from innerspace.jobs.inputs.parts import Parts, chunks
from innerspace.jobs.job import Job, Run
from innerspace.jobs.motion import summary
from innerspace.jobs.motion.optimized import Optimized, optimized_vectors
from innerspace.jobs.motion.steering import MEASURES, Bench, Steering
from innerspace.jobs.motion.sweep_rows import (
    Cell,
    best_ways,
    conclusions,
    judged_cell,
    linearity_by_sparsity,
    overview,
)
from innerspace.jobs.motion.vectors import (
    OPTIMIZED,
    PLAIN,
    SEQUENTIAL,
    Dictionaries,
    Fitted,
    Kind,
    fit_vectors,
)
from innerspace.learn.solve import Method
from innerspace.measure.fidelity import row_fidelity
from innerspace.motion.forecast_metrics import ForecastScores
from innerspace.motion.forecasters.forecaster import save
from innerspace.motion.forecasters.known import AnyForecaster
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.framing import Batch
from innerspace.motion.training import Training, train
from innerspace.motion.words import Vocabulary
from innerspace.network.model import Model
from innerspace.network.site import Where


@dataclass(frozen=True)
class Sweep(Job):
    """Fit control vectors in many ways, at many places of several forecasters, and compare what they do.

    All forecasters are trained alike, but for their ``learning_rates`` where these are given, one for each: what suits
    one is too much for another that is deeper. ``sites`` are those of every forecaster; ``tokens`` the rules that say
    which hidden states stand for an agent.
    ``methods`` are the estimators. ``dictionaries`` refine vectors, with each number of ``latents``. All is repeated
    for ``seeds``, each with scenes drawn anew; optimized vectors as often as their own settings say. Each forecaster is
    trained ``forecaster_seeds`` times, and all is repeated for each. ``steering.samples`` agents choose the best way of
    a forecaster, ``held_out`` others judge it.
    """

    data: Data = field(default_factory=Data)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    forecasters: tuple[AnyForecaster, ...] = (RedMotionSettings(),)
    training: Training = field(default_factory=Training)
    learning_rates: tuple[float, ...] = ()
    sites: tuple[str, ...] = ("agent.0", "agent.2")
    tokens: tuple[TokenRule, ...] = (TokenRule(), TokenRule(Where("valid"), "mean"))
    methods: tuple[Method, ...] = (PLAIN, "lda", "regression")
    dictionaries: Dictionaries = field(default_factory=Dictionaries)
    latents: tuple[int, ...] = (32, 128)
    optimized: Optimized = field(default_factory=Optimized)
    steering: Steering = field(default_factory=Steering)
    seeds: int = 3
    forecaster_seeds: int = 1
    held_out: int = 400

    def check(self) -> None:
        """Refuse unknown sites and methods, and settings that contradict each other, before anything is trained."""
        self.data.check()
        if not (self.forecasters and self.sites and self.tokens and self.latents):
            raise ValueError("a sweep needs a forecaster, a site, a token rule and a number of latents")
        if len({forecaster.framing for forecaster in self.forecasters}) > 1:
            raise ValueError("the forecasters should have one framing, so that they are judged on the same agents")
        self.trainings()
        for forecaster in self.forecasters:
            model = Model(forecaster.build(), forecaster.family)
            for site in self.sites:
                model.site(site)
        usable = [name for name in get_args(Method) if "through" not in name]
        if unknown := [name for name in self.methods if name not in usable]:
            raise ValueError(f"methods: unknown {unknown[0]!r}; possible are {', '.join(usable)}")
        if self.methods[:1] != (PLAIN,):
            raise ValueError(f"methods should begin with {PLAIN}, with which the others are compared")
        for name, least in (("seeds", 1), ("forecaster_seeds", 1), ("held_out", 10)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} should be at least {least}, it is {getattr(self, name)}")
        if self.dictionaries.k > min(self.latents):
            raise ValueError(
                f"dictionaries: k {self.dictionaries.k} should not exceed the fewest latents, {min(self.latents)}"
            )

    def run(self, run: Run) -> Path:
        """Train what is not trained yet, judge every vector, and write the page."""
        framing = self.forecasters[0].framing
        splits = self.data.read(framing)
        parts = Parts.of(splits, framing, self.vocabulary)
        choosing, held_out = (
            _some(half, count)
            for half, count in zip(parts.halves(), (self.steering.samples, self.held_out), strict=True)
        )
        run.say(f"  {splits.description}; {len(choosing)} agents choose, {len(held_out)} others judge what was chosen")
        known = _cells(run.folder / "cells.jsonl")
        scores = dict[str, list[dict[str, ForecastScores]]]()
        for name, settings, training in zip(self.names, self.forecasters, self.trainings(), strict=True):
            run.say(f"[bold]{escape(name)}[/]")
            folder = run.folder / "forecasters" / name
            models = list[Model]()
            for i in range(self.forecaster_seeds):
                anew = replace(training, seed=training.seed + i)
                models.append(_trained(settings, anew, parts, folder / str(i)))
            scores[name] = [summary.judge_forecasts(model, parts.test) for model in models]
            found = list[Found]()
            for i, model in enumerate(models):
                for held in self._held(model, parts):
                    bench = Bench.of(model, held.site, choosing, self.steering)
                    for item in self._found(model, (name, i), held, parts, bench, folder / str(i), run):
                        found.append(item)
                        self._judge(item, bench, known, run)
            ways = best_ways([known[item.cell.key] for item in found], self.steering.reaches)
            for item in found:
                if ways.get(item.cell.feature) == item.cell.way:
                    bench = Bench.of(models[item.cell.trained], item.cell.site, held_out, self.steering)
                    self._judge(replace(item, cell=replace(item.cell, held_out=True)), bench, known, run)
        chosen, cells = ([cell for cell in known.values() if cell.held_out == told] for told in (True, False))
        report: dict[str, Any] = {
            "title": "Control vectors, swept",
            "question": (
                "Which way of fitting a control vector acts most linearly and with the least side effects, in which "
                "forecaster and where, and does refining it by a sparse autoencoder make it more linear?"
            ),
            "best": overview(chosen),
            "sweep": overview(cells),
            **({"sparsity": refined} if (refined := linearity_by_sparsity(cells)) else {}),
            **conclusions(cells, chosen, scores, self.steering.reaches),
            "notes": {
                "best": f"{len(held_out)} agents of the test split, of other scenes than the {len(choosing)} that "
                f"chose and than all that was fitted. {self._repeated}",
                "sweep": f"{len(choosing)} agents of the test split, to which nothing was fitted. {self._repeated}",
            },
        }
        return run.conclude(self, report, seeds=range(self.seeds), data=splits.description)

    @property
    def names(self) -> list[str]:
        """The forecasters' names, numbered where there are several of a kind."""
        kinds = [type(settings).__name__.removesuffix("Settings") for settings in self.forecasters]
        return [kind if kinds.count(kind) == 1 else f"{kind}-{kinds[:i].count(kind)}" for i, kind in enumerate(kinds)]

    def trainings(self) -> list[Training]:
        """How each forecaster is trained.

        Raises:
            ValueError: for learning rates that are not one for each, or not positive.
        """
        rates = self.learning_rates or (self.training.learning_rate,) * len(self.forecasters)
        if len(rates) != len(self.forecasters):
            raise ValueError(
                f"learning_rates should be as many as the forecasters, {len(self.forecasters)}, or none; given "
                f"{len(rates)}"
            )
        return [replace(self.training, learning_rate=rate) for rate in rates]

    @property
    def _repeated(self) -> str:
        """What intervals are of."""
        if self.forecaster_seeds > 1:
            return f"Intervals over {self.forecaster_seeds} trainings, each with the mean of its vectors."
        anew = ", autoencoders trained anew" if self.dictionaries.kinds else ""
        return (
            f"Intervals over {self.seeds} seeds: scenes drawn anew with replacement{anew}. Each forecaster was trained "
            "once."
        )

    def _found(
        self,
        model: Model,
        which: tuple[str, int],
        held: "Held",
        parts: Parts,
        bench: Bench,
        folder: Path,
        run: Run,
    ) -> "Iterator[Found]":
        """The vectors of a site of a forecaster by name and training, with the temperatures at which to judge them."""
        pilot = Bench.of(model, held.site, _some(parts.fit, 150), self.steering)
        autoencoders: dict[tuple[int, Kind, int], Autoencoder] = {
            (size, kind, seed): replace(self.dictionaries, latents=size).train(
                held.every, kind, seed, folder / f"{held.site}-{size}", held.whole.get(self.tokens[0])
            )
            for size in self.latents
            for kind in self.dictionaries.kinds
            for seed in range(self.seeds)
        }
        fidelity = {key: _fidelity(one, held) for key, one in autoencoders.items()}
        for rule in self.tokens:
            vectors = self._vectors(model, held, rule, parts, autoencoders)
            taus = dict[str, Tensor]()
            for latents, item in run.track(vectors, f"{held.site}, {rule}"):
                # the step of an optimized vector is not a gap between class means
                name = f"{item.feature.name}, {item.method == OPTIMIZED}"
                if name not in taus:
                    taus[name] = bench.temperatures(item, pilot)
                cell = Cell.of(item, *which, held.site, str(rule), latents)
                kept = fidelity[latents, _kind(item), item.seed] if latents else {}
                yield Found(cell, item, taus[name], kept)

    def _judge(self, item: "Found", bench: Bench, known: dict[str, Cell], run: Run) -> None:
        """Judge a vector whose cell is not known yet."""
        if item.cell.key in known:
            return
        cell = judged_cell(item.cell, bench.judge(item.fitted, item.fitted.along, item.tau), item.fidelity)
        with (run.folder / "cells.jsonl").open("a") as file:
            file.write(json.dumps(cell.to_json()) + "\n")
        known[cell.key] = cell

    def _vectors(
        self,
        model: Model,
        held: "Held",
        rule: TokenRule,
        parts: Parts,
        autoencoders: Mapping[tuple[int, Kind, int], Autoencoder],
    ) -> list[tuple[int, Fitted]]:
        """All vectors of a site and rule that show in a forecast, each with the number of its autoencoder's latents."""
        origin = Origin("", "", "", "", held.site, str(rule), parts.splits.description, model.fingerprint())
        rows, labels, scenes = held.rows[rule], parts.fit_labels, parts.fit.scene
        found = [
            (0, item) for item in fit_vectors(rows, labels, scenes, origin, self.methods, {}, self.seeds, repeated=True)
        ]
        # where words are read changes only where the search for optimized ones begins
        if rule == self.tokens[0]:
            plain = [item for _, item in found if item.method == PLAIN]
            found += [(0, item) for item in optimized_vectors(model, held.site, parts, plain, origin, self.optimized)]
        for size in self.latents:
            own: dict[tuple[Kind, int], Autoencoder] = {
                (kind, seed): one for (latents, kind, seed), one in autoencoders.items() if latents == size
            }
            refined = fit_vectors(rows, labels, scenes, origin, (), own, self.seeds, held.whole.get(rule))
            found += [(size, item) for item in refined]
        return [(latents, item) for latents, item in found if item.feature.name in MEASURES]

    def _held(self, model: Model, parts: Parts) -> "list[Held]":
        """The hidden states of every site, from one pass over each split."""
        every = TokenRule(Where("valid"))
        fit = gather_by(model, chunks(parts.fit), self.sites, [*self.tokens, every])
        test = gather_by(model, chunks(parts.test), self.sites, [every])[0]
        sequential = set(self.dictionaries.kinds) & set(SEQUENTIAL)

        def whole(site: str, batch: Batch, rules: Sequence[TokenRule]) -> dict[TokenRule, Sequences]:
            return {rule: gather_sequences(model, chunks(batch), site, rule) for rule in rules if sequential}

        return [
            Held(
                site,
                {rule: rows.states[site] for rule, rows in zip(self.tokens, fit, strict=False)},
                fit[-1].states[site],
                test.states[site],
                whole(site, parts.fit, self.tokens),
                whole(site, parts.test, self.tokens[:1]),
            )
            for site in self.sites
        ]


@dataclass(frozen=True, eq=False)
class Held:
    """The hidden states of a site: by rule a row for every agent, and those of all valid tokens of both splits.

    ``whole`` holds sequences by rule, where an autoencoder reads them, ``held_out`` those of the test split.
    """

    site: str
    rows: dict[TokenRule, Float[Tensor, "agents d"]]
    every: Float[Tensor, "tokens d"]
    test: Float[Tensor, "others d"]
    whole: dict[TokenRule, Sequences]
    held_out: dict[TokenRule, Sequences]


@dataclass(frozen=True, eq=False)
class Found:
    """A vector to be judged: its cell, the temperatures, and how faithful its autoencoder is."""

    cell: Cell
    fitted: Fitted
    tau: Float[Tensor, "t"]
    fidelity: dict[str, float]


def _trained(settings: AnyForecaster, training: Training, parts: Parts, folder: Path) -> Model:
    torch.manual_seed(training.seed)
    network = settings.build()
    train(network, parts.train, parts.validate, training, folder)
    network.eval().requires_grad_(False)
    save(network, folder)
    return Model(network, settings.family)


def _some(batch: Batch, count: int) -> Batch:
    """So many rows at random, always the same, in their order."""
    return batch[torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))[:count].sort().values]


def _kind(fitted: Fitted) -> Kind:
    return next(kind for kind in get_args(Kind) if kind == fitted.method)


def _fidelity(one: Autoencoder, held: Held) -> dict[str, float]:
    rows = next(iter(held.held_out.values())) if isinstance(one, SequenceAutoencoder) else held.test
    found = row_fidelity(one, rows)
    return {"explained": found.explained_variance, "l0": found.l0}


def _cells(path: Path) -> dict[str, Cell]:
    """What a former run has judged; a last line that was cut off is judged again."""
    found = dict[str, Cell]()
    if not path.is_file():
        return found
    lines = path.read_text().splitlines(keepends=True)
    whole: Sequence[str] = lines if not lines or lines[-1].endswith("\n") else lines[:-1]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    for line in whole:
        cell = Cell.from_json(json.loads(line))
        found[cell.key] = cell
    return found
