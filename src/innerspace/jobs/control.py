"""Words in motion: read a forecaster's hidden states in words, fit control vectors from them, steer, and judge it.

Tas and Wagner, "Words in Motion: Extracting Interpretable Control Vectors for Motion Transformers", ICLR 2025,
arXiv 2406.11624. The job reads top to bottom as the method: scenes and words, a forecaster, probes and collapse of its
hidden states, control vectors plain and through dictionaries, steering on scenes that nothing was fitted to, a page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.markup import escape
from torch import Tensor

from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.directions import Directions, Origin
from innerspace.harvest.sequences import Sequences, gather_sequences
from innerspace.harvest.stream import TokenRule, gather
from innerspace.interventions import At, Steer
from innerspace.jobs.dictionaries.end_to_end import EndToEnd, compared
from innerspace.jobs.inputs.data import Data
from innerspace.jobs.inputs.parts import Parts, chunks
from innerspace.jobs.inputs.scenes import SceneReading, first_of_each_scene
from innerspace.jobs.job import Job, Run
from innerspace.jobs.motion import summary
from innerspace.jobs.motion.control_loop import LoopBench, Looping
from innerspace.jobs.motion.optimized import Optimized, optimized_vectors
from innerspace.jobs.motion.pictures import pictures
from innerspace.jobs.motion.reading import collapse_section, measure_collapse, online_section, probe_section, readable
from innerspace.jobs.motion.steering import (
    MEASURES,
    Bench,
    Judged,
    Steering,
    calibration_rows,
    feasibility_rows,
    off_target,
    refinement_rows,
)
from innerspace.jobs.motion.vectors import (
    FOR_CONTROL,
    OPTIMIZED,
    PLAIN,
    SEQUENTIAL,
    Dictionaries,
    Fitted,
    Kind,
    fit_vectors,
    judge_dictionaries,
    missing_classes,
)
from innerspace.jobs.partitions.learned import Finding
from innerspace.jobs.subspaces import Verifying, study
from innerspace.learn.probing import ProbingSettings, probe
from innerspace.learn.solve import Method
from innerspace.measure.cost import cost, cost_by_site
from innerspace.motion.forecasters.forecaster import save
from innerspace.motion.forecasters.known import AnyForecaster
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.framing import Batch
from innerspace.motion.training import Trained, Training, train
from innerspace.motion.words import Vocabulary
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.parallel import Share, go_on_alone


@dataclass(frozen=True)
class WordsInMotion(Job):
    """Read a motion forecaster's hidden states in words, and steer its forecasts by control vectors.

    ``sites`` are probed, vectors are fitted and applied at ``site``; ``tokens`` says which hidden states stand for an
    agent. ``methods`` are the estimators of control vectors, ``seeds`` the repetitions of plain and refined ones;
    ``optimized`` are vectors sought by what they do to forecasts.
    ``end_to_end`` trains the TopK dictionaries on by what they change in forecasts, with local ones beside them.
    ``looping`` says how a control loop around the steering is judged, None not at all.
    ``subspaces`` says how the site's subspaces are sought, None not at all, and ``verifying`` how they are verified.
    ``online_epochs`` above 0 adds the paper's own probes, trained by gradient steps on the fit split. Of several
    processes all train the forecaster, and the first one does the rest.
    """

    data: Data = field(default_factory=Data)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    forecaster: AnyForecaster = field(default_factory=RedMotionSettings)
    training: Training = field(default_factory=Training)
    sites: tuple[str, ...] = ("agent.0", "agent.1", "agent.2")
    site: str = "agent.2"
    tokens: TokenRule = field(default_factory=TokenRule)
    probing: ProbingSettings = field(default_factory=ProbingSettings)
    online_epochs: int = 0
    methods: tuple[Method, ...] = (PLAIN, "difference_svd", "reference_pca", "lda", "probe_normal", "regression")
    dictionaries: Dictionaries = field(default_factory=Dictionaries)
    optimized: Optimized = field(default_factory=Optimized)
    end_to_end: EndToEnd = field(default_factory=EndToEnd)
    subspaces: Finding | None = None
    verifying: Verifying = field(default_factory=Verifying)
    steering: Steering = field(default_factory=Steering)
    looping: Looping | None = field(default_factory=Looping)
    seeds: int = 3
    scenes_shown: int = 6

    def check(self) -> None:
        """Refuse unknown sites, methods and data before long work starts."""
        self.data.check()
        model = Model(self.forecaster.build(), self.forecaster.family)
        for site in (*self.sites, self.site):
            model.site(site)
        usable = [name for name in get_args(Method) if "through" not in name]
        if unknown := [name for name in self.methods if name not in usable]:
            raise ValueError(f"methods: unknown {unknown[0]!r}; possible are {', '.join(usable)}")
        if self.methods[:1] != (PLAIN,):
            raise ValueError(f"methods should begin with {PLAIN}, with which refined vectors are compared")
        sure = ("last", -1) if self.tokens.pool == "each" else ("last", -1, "valid", "all")
        if self.tokens.where.tokens not in sure:
            raise ValueError(f"tokens: every agent needs one hidden state; {self.tokens} may be none or several")
        needs_topk = bool({"topk", "batchtopk", "sequence"} & set(self.dictionaries.kinds)) or self.end_to_end.steps > 0
        if needs_topk and self.dictionaries.k > self.dictionaries.latents:
            raise ValueError(
                f"dictionaries: k {self.dictionaries.k} should not exceed the {self.dictionaries.latents} latents"
            )
        if self.seeds < 1:
            raise ValueError(f"seeds should be at least 1, it is {self.seeds}")
        if self.online_epochs < 0:
            raise ValueError(f"online_epochs should not be negative, it is {self.online_epochs}")

    def run(self, run: Run) -> Path:
        """Do everything, and write the page."""
        run.say("[bold]1[/] scenes and their words")
        splits = self.data.read(self.forecaster.framing)
        for skip in splits.skipped:
            run.say(escape(f"  skipped {skip.name}: {skip.reason}"))
        parts = Parts.of(splits, self.forecaster.framing, self.vocabulary)
        remarks = list[str]()
        run.say(f"  {splits.description}")
        unit = self.data.unit
        remarks += summary.few_groups(len(parts.both_groups.unique()), unit)

        run.say("[bold]2[/] the forecaster")
        trained = self.train_forecaster(parts, run)
        if not go_on_alone():
            return run.folder / "report.html"
        model = Model(trained.model, self.forecaster.family)
        scores = summary.judge_forecasts(model, parts.test)
        run.say(f"  held out: minADE {scores[type(trained.model).__name__].min_ade:.2f} m")

        run.say("[bold]3[/] what the hidden states say: probes and collapse")
        rows = gather(model, chunks(parts.both), self.sites, self.tokens)
        groups = parts.both_groups
        # of a few logs, one or two cannot hold out every class
        probing = replace(self.probing, parts=min(self.probing.parts, max(2, len(groups.unique()) // 2)))
        labels, classes, left_out = readable(parts.both_labels, groups, spread=probing.parts)
        remarks += left_out
        probed = probe(rows.states, labels, groups, probing, classes)
        collapsed = measure_collapse(rows.states, labels, classes, groups, seed=0)

        run.say("[bold]4[/] control vectors, plain and through dictionaries")
        fit_states = gather(model, chunks(parts.fit), [self.site], self.tokens).states[self.site]
        whole = self.sequences(model, parts)
        dictionaries, token_rows = self.train_dictionaries(model, parts, whole.get("fit"), run)
        origin = Origin("", "", "", "", self.site, str(self.tokens), splits.description, model.fingerprint())
        for feature in self.vocabulary.features:
            if missing := missing_classes(parts.fit_labels, feature):
                remarks.append(
                    f"no control vector for {feature.name}: too few {' and '.join(missing)} agents to fit it"
                )
        vectors = list(
            fit_vectors(
                fit_states,
                parts.fit_labels,
                parts.fit.scene,
                origin,
                self.methods,
                dictionaries,
                self.seeds,
                whole.get("fit"),
            )
        )
        if self.optimized.seeds:
            vectors += optimized_vectors(model, self.site, parts, vectors, origin, self.optimized)
        Directions.concatenate([fitted.direction for fitted in vectors]).save(run.folder / "directions.safetensors")

        run.say("[bold]5[/] steering, on scenes that nothing was fitted to")
        judged, controls = self.steer(model, parts, vectors, run)

        looped = dict[str, Any]()
        if self.looping is not None:
            looped["control_loop"] = self.close_loop(self.looping, model, parts, vectors)

        trained_on = dict[str, Any]()
        if self.end_to_end.steps:
            run.say("[bold]6[/] dictionaries that learn from forecasts")
            trained_on["end_to_end"] = self.compare_end_to_end(model, parts, token_rows["fit"], run)

        found = dict[str, Any]()
        if self.subspaces is not None:
            reading = self.reading(model, parts, batch=50)
            found = study(run, reading, [self.site], self.subspaces, self.verifying, first=7)
            found.pop("headlines")
            remarks += found.pop("remarks")

        first = {item.fitted.feature.name: item for item in reversed(judged) if item.fitted.method == PLAIN}
        firsts = [first[f.name] for f in self.vocabulary.features if f.name in first]
        test_rows = token_rows["test"]
        report: dict[str, Any] = {
            "title": "Words in motion",
            "question": (
                "Which words can be read from the hidden states of a motion forecaster, and do control vectors fitted "
                "from opposing words steer its forecasts, linearly and without side effects?"
            ),
            "interval": self.forecaster.framing.stride / 10,
            "data": self.data_section(parts),
            "forecaster": summary.forecaster_section(model.module, trained, scores, splits),
            "scenes": pictures(
                model,
                self.site,
                parts.test,
                [splits.test[int(i)].name for i in parts.test.scene],
                parts.test_labels,
                _shown(judged),
                self.scenes_shown,
            ),
            "probes": probe_section(probed),
            "collapse": collapse_section(collapsed),
            "vectors": summary.vectors_section([item.fitted for item in judged if item.fitted.seed == 0]),
            "calibration": calibration_rows(judged, self.site)
            + [row for kind, items in controls.items() for row in calibration_rows(items, self.site, kind)],
            **looped,
            "offtarget": off_target([*firsts, *(item for item in judged if item.fitted.method == OPTIMIZED)]),
            "feasibility": feasibility_rows(firsts),
            "dictionaries": judge_dictionaries(
                model,
                self.site,
                dictionaries,
                test_rows,
                chunks(parts.test),
                token_rows["fit"].mean(0),
                whole.get("test"),
            ),
            **trained_on,
            **found,
            "refinement": refinement_rows(judged, PLAIN),
            "cost": self.costs(model, parts.test[slice(0, 256)], vectors[0].along),
            "notes": summary.captions(
                splits, min(self.steering.samples, len(parts.test)), self.seeds, self.probing.seeds, unit
            ),
        }
        if self.online_epochs:
            report["online probes, balanced accuracy"] = online_section(
                rows.states, labels, classes, len(parts.fit), self.online_epochs
            )
        report |= summary.opening(report, controls["random"], first.get("speed"), remarks)
        seeds = {0, *range(self.seeds), self.training.seed}
        return run.conclude(self, report, seeds=seeds, data=splits.description)

    def train_forecaster(self, parts: Parts, run: Run) -> Trained:
        """Train the forecaster in the run's folder; a complete or interrupted training there is continued."""
        torch.manual_seed(self.training.seed)
        network = self.forecaster.build()
        trained = train(network, parts.train, parts.validate, self.training, run.folder)
        network.eval().requires_grad_(False)
        if Share.mine().rank == 0:
            save(network, run.folder)
        return trained

    def sequences(self, model: Model, parts: Parts) -> dict[str, Sequences]:
        """The hidden states of all tokens, where a dictionary learns from whole sequences."""
        if not set(self.dictionaries.kinds) & set(SEQUENTIAL):
            return {}
        return {
            name: gather_sequences(model, chunks(batch), self.site, self.tokens)
            for name, batch in (("fit", parts.fit), ("test", parts.test))
        }

    def train_dictionaries(
        self, model: Model, parts: Parts, whole: Sequences | None, run: Run
    ) -> tuple[dict[tuple[Kind, int], Autoencoder], dict[str, Tensor]]:
        """One dictionary per kind and seed, on the hidden states of all valid tokens."""
        every = TokenRule(Where("valid"))
        rows = {
            name: gather(model, chunks(batch), [self.site], every).states[self.site]
            for name, batch in (("fit", parts.fit), ("test", parts.test))
        }
        trained: dict[tuple[Kind, int], Autoencoder] = {
            (kind, seed): self.dictionaries.train(rows["fit"], kind, seed, run.folder / "dictionaries", whole)
            for kind in self.dictionaries.kinds
            for seed in range(self.seeds)
        }
        return trained, rows

    def compare_end_to_end(self, model: Model, parts: Parts, rows: Tensor, run: Run) -> dict[str, Any]:
        """Train every seed's TopK dictionary on, by its reconstruction and by what it changes in forecasts."""
        folder = run.folder / "dictionaries"
        for seed in range(self.seeds):
            self.dictionaries.train(rows, "topk", seed, folder)
        reading = self.reading(model, parts, self.end_to_end.batch)
        beginnings = [self.dictionaries.place(folder, "topk", seed) for seed in range(self.seeds)]
        return compared(reading, self.end_to_end.train(run, reading, self.site, beginnings))

    def reading(self, model: Model, parts: Parts, batch: int) -> SceneReading:
        """The forecaster with the agents to fit to, and one of each scene to judge on."""
        test = first_of_each_scene(parts.test)
        size = min(batch, len(parts.fit), len(test))
        return SceneReading(model, parts.fit, test, parts.splits.description, self.vocabulary, size, "cpu")

    def steer(
        self, model: Model, parts: Parts, vectors: Sequence[Fitted], run: Run
    ) -> tuple[list[Judged], dict[str, list[Judged]]]:
        """Every vector over its temperatures; for each feature also its negation, and random ones of equal norm."""

        def bench_on(batch: Batch, count: int) -> Bench:
            rows = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))[:count].sort().values
            return Bench.of(model, self.site, batch[rows], self.steering)

        bench, pilot = bench_on(parts.test, self.steering.samples), bench_on(parts.fit, 150)
        taus = dict[str, Tensor]()
        judged, controls = list[Judged](), dict[str, list[Judged]]({"negated": [], "random": []})
        for fitted in run.track([item for item in vectors if self.worth_judging(item)], "steering"):
            name = fitted.feature.name
            if fitted.method == OPTIMIZED:
                # its step is not a gap between class means
                judged.append(bench.judge(fitted, fitted.along, bench.temperatures(fitted, pilot)))
                continue
            if name not in taus:
                taus[name] = bench.temperatures(fitted, pilot)
                generator = torch.Generator().manual_seed(0)
                ends = taus[name][[0, len(taus[name]) // 2, -1]]
                controls["negated"].append(bench.judge(fitted, -fitted.along, taus[name], "negated"))
                for _ in range(self.steering.randoms if name == "speed" else 0):
                    noise = fitted.direction.random_like(generator).directions[0]
                    controls["random"].append(bench.judge(fitted, noise, ends, "random"))
            judged.append(bench.judge(fitted, fitted.along, taus[name]))
        return judged, controls

    def close_loop(self, settings: Looping, model: Model, parts: Parts, vectors: Sequence[Fitted]) -> dict[str, Any]:
        """Requests put to one agent of each scene, met by temperatures of its own."""
        test, pilot = first_of_each_scene(parts.test), first_of_each_scene(parts.fit)
        first = {
            fitted.feature.name: fitted.direction
            for method in reversed(FOR_CONTROL)
            for fitted in reversed(vectors)
            if fitted.method == method
        }
        cut = test[slice(0, settings.samples)], pilot[slice(0, settings.pilot)]
        return LoopBench(model, self.site, *cut, self.steering, settings).judge(first)

    def costs(self, model: Model, batch: Batch, along: Tensor) -> dict[str, Any]:
        """What steering costs at the site, and at every other one on a few agents."""
        here = cost(model, batch, {self.site: At(Where("valid"), Steer(along, 1.0))})
        few = batch[slice(0, 32)]
        return {**here.to_json(), "by_site": cost_by_site(model, few, len(few)).to_json()}

    def worth_judging(self, fitted: Fitted) -> bool:
        """All dictionaries are compared on speed, the first of them on the others; an agent's type has no measure."""
        if fitted.feature.name not in MEASURES:
            return fitted.method == PLAIN and fitted.seed == 0
        return fitted.feature.name == "speed" or fitted.method not in self.dictionaries.kinds[1:]

    def data_section(self, parts: Parts) -> dict[str, Any]:
        """Splits, classes and thresholds."""
        vocabulary = self.vocabulary
        return {
            "description": parts.splits.description,
            "splits": [
                {"name": name, "scenes": scenes, "targets": len(batch)}
                for name, scenes, batch in (
                    ("train", parts.splits.training_scenes, parts.train),
                    ("validate", len(parts.splits.validate), parts.validate),
                    ("fit", len(parts.splits.fit), parts.fit),
                    ("test", len(parts.splits.test), parts.test),
                )
            ],
            "classes": parts.both_labels.counts(),
            "thresholds": summary.thresholds(vocabulary),
            "skipped": [{"name": skip.name, "reason": skip.reason} for skip in parts.splits.skipped],
        }


def _shown(judged: Sequence[Judged]) -> list[Judged]:
    """The vectors that the page steers with: of every feature the plain, the first refined and the optimized one."""
    methods = list(dict.fromkeys(item.fitted.method for item in judged))
    refined = [method for method in methods if method in get_args(Kind)][:1]
    shown = (PLAIN, *refined, OPTIMIZED)
    return [item for item in judged if item.fitted.seed == 0 and item.fitted.method in shown]
