"""A map of the directions of several dictionaries: similar ones lie near each other in the plane (UMAP)."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.measure.neighbors import directed, nearest
from innerspace.value import Value


@dataclass(frozen=True)
class FeatureMap(Value):
    """Where directions lie in the plane; point i is direction ``latent[i]`` of ``groups[group[i]]``.

    Only nearness means something: axes, distances between far points and the density of the points do not. ``of`` is
    the number of directions given; if it is larger than the number of points, these are a random sample.
    """

    groups: tuple[str, ...]
    group: tuple[int, ...]
    latent: tuple[int, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    of: int
    neighbors: int
    seed: int


@torch.no_grad()
def feature_map(
    groups: Mapping[str, Float[Tensor, "_ _"]],
    seed: int,
    *,
    alive: Mapping[str, Bool[Tensor, "_"]] | None = None,
    neighbors: int = 15,
    most: int = 20_000,
) -> FeatureMap:
    """Lay out the directions of several dictionaries together, whatever their lengths, those that are ``alive``.

    UMAP (McInnes et al. 2018, arXiv 1802.03426) on the exact ``neighbors`` nearest ones (a direction itself counts as
    the first) at the chord ‖u − v‖ = √(2 − 2 cos), the metric of Braun et al. 2024. The cosine distance 1 − cos has the
    same neighbors but squares how far they are, which changes their weights. The same seed gives the same map on the
    same machine; beyond ``most`` directions the seed also draws which ones are shown.

    Raises:
        ValueError: if umap-learn is not installed, for fewer directions than a map needs, a mask of no group, or as
            ``nearest``.
    """
    masks = alive or {}
    if unknown := sorted(set(masks) - set(groups)):
        raise ValueError(f"a mask for {unknown[0]!r} was given; the groups are {', '.join(groups)}")
    width = next(iter(groups.values())).shape[1] if groups else None
    units = [directed(rows, masks.get(name), name, width) for name, rows in groups.items()]
    count = sum(len(rows) for rows, _ in units)
    if not 2 <= neighbors < min(count, most):
        raise ValueError(f"a map by {neighbors} neighbors needs more directions than that, got {min(count, most)}")
    latent = torch.cat([place for _, place in units]).cpu()
    group = torch.repeat_interleave(torch.tensor([len(rows) for rows, _ in units]))
    shown = torch.arange(count)
    if count > most:
        shown = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values
    unit = torch.cat([rows for rows, _ in units])[shown]

    found = nearest(unit, k=neighbors - 1)
    itself = torch.arange(len(unit), device=unit.device)[:, None]
    index = torch.cat((itself, found.index), 1)
    chord = torch.cat((torch.zeros_like(itself), (2 - 2 * found.similarity).sqrt()), 1)
    plane = _umap(unit.cpu(), index.cpu(), chord.cpu(), seed).double().round(decimals=4)
    return FeatureMap(
        groups=tuple(groups),
        group=tuple(group[shown].tolist()),
        latent=tuple(latent[shown].tolist()),
        x=tuple(plane[:, 0].tolist()),
        y=tuple(plane[:, 1].tolist()),
        of=count,
        neighbors=neighbors,
        seed=seed,
    )


def _umap(
    rows: Float[Tensor, "n d"], index: Int[Tensor, "n k"], distance: Float[Tensor, "n k"], seed: int
) -> Float[Tensor, "n 2"]:
    with warnings.catch_warnings():
        # of optional parts that are not installed, and that no points can be added to the map later
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ModuleNotFoundError:
            raise ValueError("a map of features needs umap-learn: pip install 'innerspace[language]'") from None
        # one thread: with more, the order of the steps and so the map would be left to chance
        umap = UMAP(
            n_neighbors=index.shape[1],
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(index.numpy(), distance.numpy()),
        )
        return torch.from_numpy(umap.fit_transform(rows.numpy()))
