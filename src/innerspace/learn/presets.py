"""What the papers train: for each a nonlinearity, a form, an objective and the settings of the fit.

    preset = Braun2024("e2e", sparsity=1.5)
    moments = survey(model, sample, ["resid.5"], Where("all"))
    dictionary = preset.dictionary(moments["resid.5"], latents=60 * 768)
    student = Student(dictionary, preset.objective, later=preset.later)
    fit_together([student], spliced(model, batches, ["resid.5"], …, where=Where("all")), preset.config(25_000))

Coefficients are those of the papers' own units only where it is said. Elsewhere they count in this library's: rows of
zero mean and a mean squared norm of one, errors as the share of the variance that is not explained.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

from innerspace.decompose.base import Home
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.learn.fit import FitConfig, Phase
from innerspace.learn.objectives import (
    AuxK,
    Balanced,
    Downstream,
    GateReconstruction,
    NestedReconstruction,
    Objective,
    OutputKL,
    Reconstruction,
    Sparsity,
)
from innerspace.learn.spliced import Moments
from innerspace.value import Value

Kind = Literal["local", "e2e", "e2e+ds"]


@dataclass(frozen=True)
class Preset(Value, ABC):
    """A published way to train a dictionary."""

    @property
    @abstractmethod
    def nonlinearity(self) -> Nonlinearity:
        """What makes the code sparse."""

    @property
    @abstractmethod
    def objective(self) -> Objective:
        """What judges a trial, until the first of the ``later`` phases begins."""

    @property
    def later(self) -> tuple[Phase, ...]:
        """Other terms towards the end; none by default."""
        return ()

    @property
    def normalized(self) -> bool:
        """Whether the dictionary brings rows to zero mean and a mean squared norm of one."""
        return True

    def form(self, latents: int) -> Form:  # noqa: ARG002
        """How a dictionary of that many latents is built."""
        return Form()

    @abstractmethod
    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """Optimizer and schedule for a number of steps."""

    def dictionary(self, moments: Moments, latents: int, *, seed: int = 0, home: Home | None = None) -> Dictionary:
        """A fresh dictionary for the hidden states of which these are the moments."""
        return Dictionary(
            len(moments.mean),
            latents,
            self.nonlinearity,
            mean=moments.mean.cpu() if self.normalized else None,
            scale=moments.variance**0.5 if self.normalized else 1.0,
            seed=seed,
            form=self.form(latents),
            home=home,
        )


@final
@dataclass(frozen=True)
class Braun2024(Preset):
    """End-to-end sparse dictionary learning: ``local``, ``e2e``, or ``e2e+ds``. arXiv 2405.12241.

    With λ = ``sparsity``, β = ``coefficient``, d the width, and n sites ``downstream``,

        local:   ‖x − x̂‖² / d + λ/d ‖z‖₁
        e2e:     KL(p ‖ p̂) + λ/d ‖z‖₁
        e2e+ds:  ½ KL(p ‖ p̂) + β/n Σₛ ‖aₛ − âₛ‖² / d + λ/d ‖z‖₁,

    each the mean over all positions, none left out: a stream for it takes ``Where("all")``. Coefficients are the
    paper's. Its tables use the hidden states of TransformerLens, which are centered.

    Raises:
        ValueError: if sites are given and not used, or needed and missing.
    """

    kind: Kind
    sparsity: float
    downstream: tuple[str, ...] = ()
    coefficient: float = 2.5

    def __post_init__(self) -> None:
        if (self.kind == "e2e+ds") != bool(self.downstream):
            raise ValueError(
                f"the kind 'e2e+ds' compares sites downstream, 'local' and 'e2e' none; "
                f"{self.kind!r} has {', '.join(self.downstream) or 'none'}"
            )

    @staticmethod
    def gpt2_small(kind: Kind, layer: int) -> "Braun2024":
        """The paper's coefficients for GPT-2 small before block ``layer``, at like cross-entropies (its Table 2).

        Raises:
            ValueError: for a layer that the paper does not have.
        """
        sparsity: dict[Kind, dict[int, float]] = {
            "local": {2: 0.8, 6: 4.0, 10: 6.0},
            "e2e": {2: 0.5, 6: 3.0, 10: 1.5},
            "e2e+ds": {2: 10.0, 6: 50.0, 10: 1.75},
        }
        if layer not in sparsity[kind]:
            raise ValueError(f"the paper trains before the blocks 2, 6 and 10 of GPT-2 small, not before {layer}")
        sites = tuple(f"blocks.{i}.hook_resid_pre" for i in range(layer + 1, 12)) if kind == "e2e+ds" else ()
        return Braun2024(kind, sparsity[kind][layer], sites, 0.05 if layer == 10 else 2.5)

    @property
    def nonlinearity(self) -> Nonlinearity:
        """ReLU."""
        return ReLU()

    @property
    def objective(self) -> Objective:
        """As above."""
        sparsity = Sparsity(self.sparsity, per_width=True)
        match self.kind:
            case "local":
                return Reconstruction(unit="mean"), sparsity
            case "e2e":
                return OutputKL(), sparsity
            case "e2e+ds":
                return OutputKL(0.5), Downstream(self.downstream, self.coefficient), sparsity

    @property
    def normalized(self) -> bool:
        """False."""
        return False

    def form(self, latents: int) -> Form:  # noqa: ARG002
        """Decoder rows are divided by their norms in every pass; no bias is subtracted before encoding."""
        return Form(decoder="normalized", pre_bias=False, first="linear")

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """In the paper 25,000 steps of 16 × 1,024 tokens; the first step has the rate zero."""
        return FitConfig(steps, 5e-4, warmup=0.05, cooldown=0.0, schedule="cosine", floor=0.1, clip=10.0, seed=seed)


@final
@dataclass(frozen=True)
class Gao2024(Preset):
    """TopK, with dead latents brought back by AuxK. arXiv 2406.04093.

    ``aux`` is a power of two near half the width. Without the paper's running average of the weights.
    """

    k: int
    aux: int = 256
    dead_after: int = 10_000_000

    @property
    def nonlinearity(self) -> Nonlinearity:
        """TopK."""
        return TopK(self.k)

    @property
    def objective(self) -> Objective:
        """Reconstruction and AuxK / 32."""
        return Reconstruction(), AuxK(self.aux, 1 / 32, self.dead_after)

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """A constant rate; in the paper batches of 131,072 tokens."""
        return FitConfig(steps, 1e-4, warmup=0.0, cooldown=0.0, clip=1.0, seed=seed)


@final
@dataclass(frozen=True)
class Bussmann2024(Preset):
    """BatchTopK, with AuxK. arXiv 2412.06410. A latent is dead after 20 of the paper's batches of 4,096 tokens."""

    k: int
    aux: int = 512
    dead_after: int = 81_920

    @property
    def nonlinearity(self) -> Nonlinearity:
        """BatchTopK."""
        return BatchTopK(self.k)

    @property
    def objective(self) -> Objective:
        """Reconstruction and AuxK / 32."""
        return Reconstruction(), AuxK(self.aux, 1 / 32, self.dead_after)

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """A constant rate and no clipping."""
        return FitConfig(steps, 3e-4, warmup=0.0, cooldown=0.0, betas=(0.9, 0.99), clip=None, seed=seed)


@final
@dataclass(frozen=True)
class Bussmann2025(Preset):
    """Matryoshka BatchTopK: nested dictionaries, of which each reconstructs alone. arXiv 2503.17547.

    ``shares`` are the sizes of the nested dictionaries, the last of which is the whole.
    """

    k: int
    shares: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
    aux: int = 512
    dead_after: int = 81_920

    def __post_init__(self) -> None:
        if not self.shares or self.shares[-1] != 1 or min(self.shares) <= 0:
            raise ValueError(f"the shares of the nested dictionaries should grow to 1, they are {list(self.shares)}")

    @property
    def nonlinearity(self) -> Nonlinearity:
        """BatchTopK."""
        return BatchTopK(self.k)

    @property
    def objective(self) -> Objective:
        """The mean reconstruction by the nested dictionaries, and AuxK / 32."""
        return NestedReconstruction(), AuxK(self.aux, 1 / 32, self.dead_after)

    def form(self, latents: int) -> Form:
        """With prefixes."""
        return Form(prefixes=tuple(round(share * latents) for share in self.shares))

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """As for BatchTopK."""
        return Bussmann2024(self.k).config(steps, seed=seed)


@final
@dataclass(frozen=True)
class Rajamanoharan2024a(Preset):
    """Gated: one bias decides what is on, another how much. arXiv 2404.16014.

    ``sparsity`` is the paper's λ. The paper resamples dead latents: ``DeadLatents``.
    """

    sparsity: float

    @property
    def nonlinearity(self) -> Nonlinearity:
        """Gated."""
        return Gated()

    @property
    def objective(self) -> Objective:
        """Reconstruction by the whole and by the gate, and the gate's L1 norm."""
        return Reconstruction(), GateReconstruction(), Sparsity(self.sparsity)

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """1,000 steps of warm-up, no first moment; in the paper batches of 4,096 tokens."""
        warmup = min(1000 / steps, 0.5)
        return FitConfig(steps, 3e-4, warmup=warmup, cooldown=0.0, betas=(0.0, 0.999), clip=None, seed=seed)


@final
@dataclass(frozen=True)
class Rajamanoharan2024b(Preset):
    """JumpReLU: a learned threshold per latent, and L0 itself as the penalty. arXiv 2407.14435.

    ``sparsity`` is the paper's λ. Its kernels are as narrow as 0.001, on thousands of wide rows; where batches are
    small, wider ones let thresholds learn.
    """

    sparsity: float
    bandwidth: float = 0.001
    threshold: float = 0.001

    @property
    def nonlinearity(self) -> Nonlinearity:
        """JumpReLU."""
        return JumpReLU(self.bandwidth, self.threshold)

    @property
    def objective(self) -> Objective:
        """Reconstruction, and the number of entries that are on."""
        return Reconstruction(), Sparsity(self.sparsity)

    def form(self, latents: int) -> Form:  # noqa: ARG002
        """No bias is subtracted before encoding."""
        return Form(pre_bias=False)

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """1,000 steps until the rate is whole and 10,000 until λ is; no first moment."""
        warmup, ramp = min(1000 / steps, 0.5), min(10_000 / steps, 0.5)
        return FitConfig(
            steps, 7e-5, warmup=warmup, cooldown=0.0, betas=(0.0, 0.999), clip=None, sparsity_warmup=ramp, seed=seed
        )


@final
@dataclass(frozen=True)
class Conerly2024(Preset):
    """ReLU with free decoder norms, by which the L1 norm is weighted: the Circuits Update of April 2024.

    ``sparsity`` is the paper's λ / √d, since its rows have a norm of √d. Decoder rows begin with a norm of one, there
    with less.
    """

    sparsity: float

    @property
    def nonlinearity(self) -> Nonlinearity:
        """ReLU."""
        return ReLU()

    @property
    def objective(self) -> Objective:
        """Reconstruction, and Σ zᵢ ‖dᵢ‖."""
        return Reconstruction(), Sparsity(self.sparsity)

    def form(self, latents: int) -> Form:  # noqa: ARG002
        """Free norms; no bias is subtracted before encoding."""
        return Form(decoder="free", pre_bias=False)

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """λ rises over the first 5 % of the steps, the rate falls to zero over the last 20 %."""
        return FitConfig(steps, 5e-5, warmup=0.0, cooldown=0.2, clip=1.0, sparsity_warmup=0.05, seed=seed)


@final
@dataclass(frozen=True)
class Karvonen2025(Preset):
    """Another preset, which for the last ``share`` of the steps learns from the divergence as well. arXiv 2503.17272.

    The reconstruction gives way to ½ (MSE + [MSE / KL] · KL), at ``rate`` times the learning rate.

    Raises:
        ValueError: for a preset that learns from the divergence already, or does not reconstruct.
    """

    first: Preset
    share: float = 0.05
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.first.later or not any(isinstance(term, Reconstruction) for term in self.first.objective):
            raise ValueError(f"the first phase should be one of plain reconstruction, it is {self.first}")

    @property
    def nonlinearity(self) -> Nonlinearity:
        """That of the first phase."""
        return self.first.nonlinearity

    @property
    def objective(self) -> Objective:
        """That of the first phase."""
        return self.first.objective

    @property
    def later(self) -> tuple[Phase, ...]:
        """The balanced term in place of the reconstruction."""
        terms = tuple(
            Balanced(term.unit) if isinstance(term, Reconstruction) else term for term in self.first.objective
        )
        return (Phase(1 - self.share, terms, self.rate),)

    @property
    def normalized(self) -> bool:
        """That of the first phase."""
        return self.first.normalized

    def form(self, latents: int) -> Form:
        """That of the first phase."""
        return self.first.form(latents)

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """That of the first phase."""
        return self.first.config(steps, seed=seed)
