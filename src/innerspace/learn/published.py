"""What Words in Motion trains, with its losses as published: next to what this library trains, not in its place.

Tas and Wagner, ICLR 2025, arXiv 2406.11624. Both presets are for hidden states as they are, without normalization.
"""

from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.dictionary import Form
from innerspace.decompose.nonlinearities import Nonlinearity, ReLU
from innerspace.decompose.sparse import Sparse
from innerspace.learn.fit import FitConfig
from innerspace.learn.objectives import Objective, Reconstruction, Term
from innerspace.learn.presets import Preset
from innerspace.learn.trials import Trial


@dataclass(frozen=True)
class PublishedSparsity(Term):
    """``coefficient`` × the sum, or the mean, of |z| over all entries of all rows of a batch.

    A sum weighs sparsity by the size of the batch: of twice the rows, it is twice as much. ``Sparsity`` does not.
    """

    coefficient: float = 3e-4
    over: Literal["sum", "mean"] = "sum"

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """λ Σ|z|, or λ Σ|z| / (rows · latents)."""
        z = trial.code.z
        total = (z.values if isinstance(z, Sparse) else z).abs().sum()
        rows = trial.code.cost.numel()
        return self.coefficient * (total if self.over == "sum" else total / (rows * z.shape[-1]))


@final
@dataclass(frozen=True)
class Tas2025(Preset):
    """The fully connected autoencoder of Words in Motion: mean ‖x̂ − x‖² + 3e-4 · Σ_batch |s|.

    In the paper a batch is 32 files of 48 agents, and the error the mean over agents of means over files, which for
    whole batches is the mean over all of the 1,536 rows. The decoder's rows have unit norm at first only.
    """

    sparsity: float = 3e-4

    @property
    def nonlinearity(self) -> Nonlinearity:
        """ReLU; the published JumpReLU has a fixed threshold of 0.001, which hardly differs."""
        return ReLU()

    @property
    def objective(self) -> Objective:
        """As above."""
        return Reconstruction(unit="sum"), PublishedSparsity(self.sparsity)

    @property
    def normalized(self) -> bool:
        """False."""
        return False

    def form(self, latents: int) -> Form:  # noqa: ARG002
        """Kaiming's uniform beginnings."""
        return Form(decoder="free", first="kaiming")

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """Adam at 1e-3; in the paper 10,000 epochs of 7 batches."""
        return FitConfig(steps, 1e-3, warmup=0.0, cooldown=0.0, clip=None, seed=seed)


@final
@dataclass(frozen=True)
class Cunningham2023(Preset):
    """The tied autoencoder, as Words in Motion has it: MSE + 3e-4 · mean |s|, both means over all entries.

    The decoder is the transposed encoder, of any norm, and has no bias. Cunningham et al. 2023, arXiv 2309.08600.
    """

    sparsity: float = 3e-4

    @property
    def nonlinearity(self) -> Nonlinearity:
        """ReLU."""
        return ReLU()

    @property
    def objective(self) -> Objective:
        """As above."""
        return Reconstruction(unit="mean"), PublishedSparsity(self.sparsity, over="mean")

    @property
    def normalized(self) -> bool:
        """False."""
        return False

    def form(self, latents: int) -> Form:  # noqa: ARG002
        """Tied, without any bias but the encoder's."""
        return Form(decoder="free", pre_bias=False, tied=True, bias=False)

    def config(self, steps: int, *, seed: int = 0) -> FitConfig:
        """Adam at 1e-3."""
        return FitConfig(steps, 1e-3, warmup=0.0, cooldown=0.0, clip=None, seed=seed)
