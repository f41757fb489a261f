"""Programs set into transformers by hand: every variable has its own directions in the residual stream.

A categorical variable with n values takes n directions, one for each value, a number takes one. Attention selects by a
large gap between scores, so that a softmax divides evenly among the selected positions; the position in front of the
input, which carries nothing but a mark, is looked at where nothing is selected, and is counted along for widths:
1 / (1 + width) is what a head can write. MLPs have units clamp(·, 0, 1), which tell such numbers and pairs of values
apart exactly, and remove the number again. A variable is computed in the first sublayer that can read its inputs.

The network that results is the same function in any rotated coordinates (``hidden``), and can be squeezed through a
trained linear map (``compressed``). The idea, not the code, is from Lindner et al., "Tracr", NeurIPS 2023.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import Read
from innerspace.network.model import Family, Model
from innerspace.network.site import Site
from innerspace.planted.programs import Aggregate, Column, Item, Map, Mean, Program, Variable, Width

_SHARPNESS = 60.0
"""The gap of scores between what is selected and what is not; e⁻³⁰ is left of what should not be seen."""

Labels = Mapping[str, Tensor]
"""Variables by name: the index of the value, −1 where it has none, or the number itself; one entry per position."""


@final
@dataclass(frozen=True, eq=False)
class Truth:
    """The variables that live at a site.

    Row i of ``images[name]`` is what value i adds to the hidden state; a number is multiplied with its one row. Through
    ``functions_of`` a variable follows from others at the same site and position: no look at the states alone can tell
    such variables apart.
    """

    images: Mapping[str, Float[Tensor, "values d"]]
    functions_of: Mapping[str, tuple[str, ...]]

    def spans(self, labels: Labels) -> dict[str, Float[Tensor, "size d"]]:
        """Orthonormal rows along which each variable moves the state, over rows with these labels.

        A variable of n values that always has one moves along n − 1 dimensions, and one that never changes along none.
        """
        return {name: _moving(self.added(name, labels[name])) for name in self.images}

    def overlaps(self, labels: Labels) -> Float[Tensor, "variables variables"]:
        """The largest cosine between the spans of two variables: 0 for orthogonal ones, 1 on the diagonal."""
        spans = list(self.spans(labels).values())
        return torch.tensor([[_cosine(one, other) for other in spans] for one in spans])

    def partition(self, labels: Labels) -> tuple[Subspaces, tuple[str, ...]]:
        """The spans as a partition, with the name of every part.

        What no variable moves, such as the sum over all values of each, is the last part, ``constant``.

        Raises:
            ValueError: if the spans are not orthogonal, as in a compressed network, naming two.
        """
        spans = {name: span for name, span in self.spans(labels).items() if len(span)}
        for (name, one), (other, two) in itertools.combinations(spans.items(), 2):
            if (cosine := _cosine(one, two)) > 1e-3:
                raise ValueError(f"{name!r} and {other!r} are not orthogonal (cosine {cosine:.2g}): no partition")
        moved = torch.cat(list(spans.values()))
        rest = torch.linalg.svd(moved.double()).Vh[len(moved) :].to(moved)
        named = spans | ({"constant": rest} if len(rest) else {})
        return Subspaces(torch.cat(list(named.values())), [len(span) for span in named.values()]), tuple(named)

    def added(self, name: str, labels: Tensor) -> Tensor:
        """What the variable adds to each row."""
        images = self.images[name]
        if labels.is_floating_point():
            return labels[..., None].to(images) * images[0]
        return torch.cat([images, torch.zeros_like(images[:1])])[labels]


@final
class Compiled(nn.Module):
    """A transformer that runs a program; it reads ids [batch, 1 + length], of which the first marks the beginning.

    ``frame`` [d, natural] maps the natural coordinates, one direction for each value, to those of the stream.
    """

    frame: Tensor

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.plan = _Plan(program)
        self.register_buffer("frame", torch.eye(self.plan.width))
        self.embed = _Embedding(self.plan)
        self.layers = nn.ModuleList((_MLP, _Attention)[t % 2](self.plan, t) for t in range(1, 2 * self.plan.depth + 1))
        self.readout = nn.Parameter(self.plan.of(program.output))
        self.requires_grad_(False)

    @property
    def width(self) -> int:
        """The width of the residual stream."""
        return len(self.frame)

    def forward(self, ids: Int[Tensor, "batch token"]) -> tuple[Tensor, list[Tensor]]:
        """The output variable [batch, token, values], and the stream behind the embedding and every sublayer."""
        streams = [self.embed(ids)]
        for layer in self.layers:
            streams.append(layer(streams[-1]))
        return streams[-1] @ self.readout.T, streams

    def hidden(self, rotation: Float[Tensor, "d d"]) -> "Compiled":
        """The same function in rotated coordinates, in which no variable is seen any more.

        Raises:
            ValueError: for a matrix that is not orthogonal.
        """
        return self._folded(Subspaces(rotation, [len(rotation)]).base)

    def compressed(self, width: int, *, steps: int = 1000, rate: float = 1e-3, seed: int = 0) -> "Compiled":
        """The network squeezed into a narrower stream by one linear map W, trained as in Tracr.

        Every weight reads and writes through one W [width, d]: a state x becomes W x and is read as Wᵀ W x. The loss is
        the squared error of the output and of every stream, Wᵀ x' against x, on the program's inputs; W begins at the
        principal directions of the streams. Variables need not stay orthogonal: ``Truth.overlaps`` tells.

        Raises:
            ValueError: for a width that is not smaller than the network's.
        """
        if not 1 <= width < self.width:
            raise ValueError(f"a stream of width {self.width} is compressed to 1 … {self.width - 1}, not {width}")
        pool = self.encode(self.program.inputs(1024, seed))
        with torch.no_grad():
            output, streams = self(pool)
        states = torch.stack(streams, 1)
        frame = torch.linalg.svd(states.flatten(0, -2).double(), full_matrices=False).Vh[:width].to(states)
        frame.requires_grad_(True)
        weights, optimizer = self._weights(), torch.optim.Adam([frame], lr=rate)
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            chosen = torch.randint(len(pool), (64,), generator=generator)
            folded = {name: weight @ frame.T for name, weight in weights.items()}
            said, squeezed = torch.func.functional_call(self, folded, (pool[chosen],))
            loss = (said - output[chosen]).square().sum(-1).mean()
            loss = loss + (torch.stack(squeezed, 1) @ frame - states[chosen]).square().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self._folded(frame.detach())

    def encode(self, inputs: Sequence[Sequence[Item]]) -> Int[Tensor, "batch token"]:
        """Token ids, each row with the mark of the beginning."""
        index = {item: i for i, item in enumerate(self.program.tokens.values)}
        return torch.tensor([[len(index), *(index[item] for item in row)] for row in inputs])

    def decode(self, output: Float[Tensor, "batch token values"]) -> list[Column]:
        """What the network says at every position: the value, the number, or None."""
        values, content = self.program.output.values, output[:, 1:]
        if not values:
            return content[..., 0].tolist()
        best = content.max(-1)
        chosen = torch.where(best.values > 0.5, best.indices, -1).tolist()
        return [[values[i] if i >= 0 else None for i in row] for row in chosen]

    def labels(self, inputs: Sequence[Sequence[Item]], site: str) -> dict[str, Tensor]:
        """The variables at a site as the program computes them, each [batch, length]."""
        runs = [self.program.run(row) for row in inputs]
        return {v.name: torch.tensor([v.labels(run[v.name]) for run in runs]) for v in self._living(site)}

    def truth(self, site: str) -> Truth:
        """Which variables live at a site, and where.

        Raises:
            ValueError: for an unknown site.
        """
        living = self._living(site)
        images = {variable.name: self.frame[:, self.plan.places[variable.name]].T for variable in living}
        follows = {v.name: tuple(source.name for source in v.inputs) for v in living if isinstance(v, Map)}
        return Truth(images, follows)

    def _weights(self) -> dict[str, Tensor]:
        """All weights but the biases: in each, the last axis is the stream."""
        return {name: weight for name, weight in self.named_parameters() if not name.endswith("bias")}

    def _folded(self, frame: Tensor) -> "Compiled":
        """The network whose stream is ``frame`` times this one's."""
        other = copy.deepcopy(self)
        for name, weight in self._weights().items():
            module, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(module), leaf, nn.Parameter(weight @ frame.T, requires_grad=False))
        other.frame = frame @ self.frame
        return other

    def _living(self, site: str) -> list[Variable]:
        times = {"embed": 0} | {f"resid.{i}": 2 * i + 2 for i in range(self.plan.depth)}
        if site not in times:
            raise ValueError(f"no site is called {site!r}; this network has {', '.join(times)}")
        return [variable for variable in self.program.variables if self.plan.time[variable.name] <= times[site]]


@final
class CompiledFamily(Family):
    """Compiled programs: batches are ids, sites ``embed`` and ``resid.i``, and the beginning counts as padding."""

    def sites(self, module: nn.Module) -> list[Site]:
        """The stream behind the embedding and behind every block, which is attention and MLP."""
        network = cast(Compiled, module)
        blocks = [Site(f"resid.{i}", f"layers.{2 * i + 1}", network.width) for i in range(network.plan.depth)]
        return [Site("embed", "embed", network.width), *blocks]

    def forward(self, module: nn.Module, batch: Int[Tensor, "batch token"]) -> Mapping[str, Tensor]:
        """The ``output`` [batch, token, values]."""
        return {"output": module(batch)[0]}

    def mask(self, batch: Int[Tensor, "batch token"], site: Site) -> Bool[Tensor, "batch token"]:  # noqa: ARG002
        """Everything but the beginning."""
        valid = torch.ones_like(batch, dtype=torch.bool)
        valid[:, 0] = False
        return valid

    def cut(self, module: nn.Module, site: Site) -> Site:  # noqa: ARG002
        """Every site is one."""
        return site

    def spared(self, module: nn.Module, cut: Site) -> Sequence[str]:
        """What lies before."""
        modules = ["embed", *(f"layers.{i}" for i in range(2 * cast(Compiled, module).plan.depth))]
        return modules[: modules.index(cut.module) + 1]


@torch.no_grad()
def rows(network: Compiled, site: str, count: int, seed: int) -> tuple[Float[Tensor, "count d"], dict[str, Tensor]]:
    """Hidden states at a site and the variables in each, no two rows with the same values of all variables.

    Programs have finitely many states: with repeated ones every state has a neighbor at distance zero in any direction.
    Also without, distances teach little when there are more keys than two variables have combinations.

    Raises:
        ValueError: if hundreds of inputs in a row bring no new state, naming how many there are.
    """
    model, found = Model(network, CompiledFamily()), dict[tuple[float, ...], Tensor]()
    for turn in itertools.count():
        inputs, before = network.program.inputs(256, seed * 1_000_003 + turn), len(found)
        labels = network.labels(inputs, site)
        hidden = model.run(network.encode(inputs), {site: Read()}, stop=True).hidden[site]
        values = zip(*(column.flatten().tolist() for column in labels.values()), strict=True)
        for row, state in zip(values, hidden[:, 1:].flatten(0, 1), strict=True):
            found.setdefault(row, state)
        if len(found) >= count:
            break
        if len(found) == before:
            raise ValueError(f"{network.program.name!r} has some {before} different states at {site!r}, not {count}")
    columns = zip(*itertools.islice(found, count), strict=True)
    named = {name: torch.tensor(column) for name, column in zip(network.truth(site).images, columns, strict=True)}
    return torch.stack(list(found.values())[:count]), named


@final
class _Plan:
    """Where every variable lives, and from which sublayer on: 0 the embedding, 2i + 1 attention i, 2i + 2 MLP i.

    A width is first written by a head, as 1 / (1 + width), to a place of its own: ``inverse``.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.places, self.inverse, self.time = dict[str, slice](), dict[str, int](), dict[str, int]()
        end = 1
        for variable in program.variables:
            self.places[variable.name] = slice(end, end := end + max(len(variable.values), 1))
            ready = max((self.time[source.name] for source in variable.inputs), default=-1)
            attention, mlp = ready + 1 + ready % 2, ready + 2 - ready % 2
            match variable:
                case Width():
                    self.inverse[variable.name], end = end, end + 1
                    self.time[variable.name] = attention + 1
                case Map():
                    self.time[variable.name] = mlp
                case Aggregate() | Mean():
                    self.time[variable.name] = attention
                case _:
                    self.time[variable.name] = 0
        self.width, self.depth = end, max(1, (max(self.time.values()) + 1) // 2)

    def at(self, time: int) -> list[Variable]:
        """What is computed by a sublayer."""
        return [v for v in self.program.variables if self.time[v.name] - (isinstance(v, Width) and time % 2) == time]

    def of(self, variable: Variable) -> Tensor:
        """The directions of a variable, one row for each value."""
        return torch.eye(self.width)[self.places[variable.name]]


@final
class _Embedding(nn.Module):
    """What stands at a position, and which position it is; the first direction marks the beginning."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        mark, nothing = torch.eye(plan.width)[:1], torch.zeros(1, plan.width)
        self.tokens = nn.Parameter(torch.cat([plan.of(plan.program.tokens), mark]))
        self.positions = nn.Parameter(torch.cat([nothing, plan.of(plan.program.positions)]))

    def forward(self, ids: Tensor) -> Tensor:
        return self.tokens[ids] + self.positions


@final
class _Attention(nn.Module):
    """A head for every variable; all add to the stream."""

    def __init__(self, plan: _Plan, time: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Head(plan, variable) for variable in plan.at(time))

    def forward(self, x: Tensor) -> Tensor:
        return x + sum((head(x) for head in self.heads), torch.zeros_like(x))


@final
class _MLP(nn.Module):
    """Units clamp(·, 0, 1) that add to the stream."""

    def __init__(self, plan: _Plan, time: int) -> None:
        super().__init__()
        units = [unit for variable in plan.at(time) for unit in _units(plan, variable)]
        nothing = torch.zeros(0, plan.width)
        self.reads = nn.Parameter(torch.stack([read for read, _, _ in units]) if units else nothing)
        self.bias = nn.Parameter(torch.tensor([bias for _, bias, _ in units]))
        self.writes = nn.Parameter(torch.stack([write for _, _, write in units]) if units else nothing)

    def forward(self, x: Tensor) -> Tensor:
        return x + (x @ self.reads.T + self.bias).clamp(0, 1) @ self.writes


@final
class _Head(nn.Module):
    """Looks at what a variable selects, or at the beginning if that is nothing, and writes the mean."""

    def __init__(self, plan: _Plan, variable: Variable) -> None:
        super().__init__()
        mark = torch.eye(plan.width)[:1]
        match variable:
            case Aggregate(selector=selector):
                value, out, bound = plan.of(variable.of), plan.of(variable), _SHARPNESS / 2
            case Mean(selector=selector):
                numbers = torch.tensor([[float(variable.rule(item)) for item in variable.of.values]])
                value, out, bound = numbers @ plan.of(variable.of), plan.of(variable), _SHARPNESS / 2
            case Width(selector=selector):
                value, out, bound = mark, torch.eye(plan.width)[plan.inverse[variable.name]][None], _SHARPNESS
            case _:
                raise AssertionError(f"no head computes a {type(variable).__name__}")
        keys, queries = selector.keys, selector.queries
        meets = torch.tensor([[float(selector.predicate(k, q)) for q in queries.values] for k in keys.values])
        self.query = nn.Parameter(torch.cat([_SHARPNESS * meets @ plan.of(queries), torch.zeros_like(mark)]))
        self.bias = nn.Parameter(torch.cat([torch.zeros(len(keys.values)), torch.tensor([bound])]))
        self.key = nn.Parameter(torch.cat([plan.of(keys), mark]))
        self.value, self.out, self.causal = nn.Parameter(value), nn.Parameter(out), selector.causal

    def forward(self, x: Tensor) -> Tensor:
        scores = (x @ self.query.T + self.bias) @ (x @ self.key.T).mT
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1) @ (x @ self.value.T) @ self.out


def _units(plan: _Plan, variable: Variable) -> list[tuple[Tensor, float, Tensor]]:
    """What every unit reads, its bias, and what it writes."""
    own = plan.of(variable)
    if isinstance(variable, Map):
        reads = itertools.product(*(plan.of(source) for source in variable.of))
        writes = [own[variable.values.index(outcome)] for outcome in variable.table.values()]
        return [(torch.stack(read).sum(0), 1.0 - len(read), write) for read, write in zip(reads, writes, strict=True)]
    mark, inverse = torch.eye(plan.width)[0], torch.eye(plan.width)[plan.inverse[variable.name]]
    units = [(-mark, 1.0, own[0]), (inverse, 0.0, -inverse)]
    for width in range(1, len(own)):
        # steps from 0 to 1 between the numbers of width − 1 and width, well inside the gap
        low, high = 1 / (1 + width), 1 / width
        slope = 4 / (high - low)
        units.append((-slope * inverse, 0.5 + slope * (low + high) / 2, own[width] - own[width - 1]))
    return units


def _moving(parts: Tensor) -> Tensor:
    """Orthonormal rows that span how vectors differ from their mean."""
    centered = parts.double() - parts.double().mean(0)
    sizes, directions = torch.linalg.eigh(centered.T @ centered / len(parts))
    return directions.T[sizes > 1e-9].to(parts)


def _cosine(one: Tensor, other: Tensor) -> float:
    """The largest cosine between vectors of two spans with orthonormal rows; 0 if one is empty."""
    return float(torch.linalg.matrix_norm(one @ other.T, 2)) if len(one) and len(other) else 0.0
