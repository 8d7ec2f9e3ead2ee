"""Letters of operators that read or write where other tensors say."""

from __future__ import annotations

from fourfold.frontends.letters.op import NONE, Dim, Letters, Operand, OpLetters, flat
from fourfold.letters import ShardingRule


def embedding(op: OpLetters) -> ShardingRule | None:
    """weight [v, w] at indices […]: split rows make a partial result, each device adding the rows that it holds."""
    if op.op != "embedding":
        return None
    weight, indices = op.needed("weight"), op.needed("indices")
    rows, width = op.named(weight.shape)
    places = op.named(indices.shape)
    return op.rule({weight.position: (rows, width), indices.position: places}, [(*places, width)], sums=[rows], indexed=rows,
                   linear=[{weight.position}])


def embedding_backward(op: OpLetters) -> ShardingRule | None:
    """The table's gradient: a sum over the places that were looked up."""
    if op.op != "embedding_dense_backward":
        return None
    gradient, indices = op.needed("grad_output"), op.needed("indices")
    places = op.named(indices.shape)
    rows, width = op.named(op.results[0])
    return op.rule({gradient.position: (*places, width), indices.position: places}, [(rows, width)], sums=[set(flat(places))], indexed=rows,
                   linear=[{gradient.position}])


def gather(op: OpLetters) -> ShardingRule | None:
    """gather, scatter and kin: the other dimensions may be split where all operands have them alike."""
    if op.op not in ("gather", "take_along_dim", "scatter", "scatter_add", "scatter_reduce", "index_select", "index_add", "index_copy"):
        return None
    x, index = op.needed("self"), op.tensor("index") or op.needed("indices")
    if not x.ndim or x.ndim != index.ndim and op.op in ("gather", "take_along_dim", "scatter", "scatter_add", "scatter_reduce"):
        return None
    d = op.integer("dim") % x.ndim
    letters = op.named(x.shape)
    if op.op in ("index_select", "index_add", "index_copy"):
        place = op.fresh(index.shape[0]) if index.ndim else NONE
        across: Letters = (*letters[:d], place, *letters[d + 1 :])
        if op.op == "index_select":
            return op.rule({x.position: letters, index.position: (place,) * index.ndim}, [across], letters[d], linear=[{x.position}])
        source = op.needed("source")
        return op.rule({x.position: letters, index.position: (place,) * index.ndim, source.position: across}, [letters], {*letters[d], *place},
                       linear=[{x.position, source.position}])
    fixed: set[str] = set(letters[d])
    own: list[Dim] = []
    for e, n in enumerate(index.shape):
        if e != d and n == x.shape[e]:
            own.append(letters[e])
            continue
        own.append(op.fresh(n))
        fixed |= set(letters[e]) | (set() if e == d and op.op in ("gather", "take_along_dim") else set(own[-1]))
    source = op.tensor("src")
    inputs: dict[int, Letters] = {x.position: letters, index.position: tuple(own)}
    if op.op in ("gather", "take_along_dim"):
        return op.rule(inputs, [tuple(own)], fixed, linear=[{x.position}])
    linear: list[set[int]] = []
    if source is not None:
        if source.shape != index.shape:
            return None
        inputs[source.position] = tuple(own)
        linear = [{x.position, source.position}] if op.op == "scatter_add" or op.op == "scatter" and op.args.get("reduce") is None else []
    return op.rule(inputs, [letters], fixed, linear=linear)


def _indexed(op: OpLetters, x: Operand) -> tuple[Letters, dict[int, Letters], Letters, set[str], set[str]] | None:
    """(letters of x, of the indices, of what is picked; letters that stay whole; letters of the places) of advanced indexing."""
    given = op.args.get("indices")
    indices = list(given) if isinstance(given, list | tuple) else []
    used = [d for d, one in enumerate(indices) if isinstance(one, Operand)]
    tensors = [one for one in indices if isinstance(one, Operand)]
    if not tensors or any(not one.shape and False for one in tensors):
        return None
    rank = max(one.ndim for one in tensors)
    sizes = [1] * rank
    for one in tensors:
        for i, n in enumerate(one.shape, rank - one.ndim):
            sizes[i] = max(sizes[i], n)
    places, letters = op.named(sizes), op.named(x.shape)
    inputs = {one.position: op.broadcast(one.shape, places, tuple(sizes)) for one in tensors}
    together = used == list(range(used[0], used[-1] + 1))
    kept = [letters[d] for d in range(x.ndim) if d not in used]
    at = used[0] if together else 0
    picked = (*kept[:at], *places, *kept[at:])
    return letters, inputs, picked, set(flat(letters[d] for d in used)), set(flat(places))


def index(op: OpLetters) -> ShardingRule | None:
    """x[i, j, :]: indexed dimensions stay whole, others and the places may be split. Boolean masks have no letters: sizes depend on data."""
    if op.op not in ("index", "_unsafe_index"):
        return None
    x = op.needed("self")
    found = _indexed(op, x)
    if found is None:
        return None
    letters, inputs, picked, fixed, _ = found
    if len(picked) != len(op.results[0]):
        return None
    return op.rule(inputs | {x.position: letters}, [picked], fixed, linear=[{x.position}])


def index_put(op: OpLetters) -> ShardingRule | None:
    """x[i, j, :] = values: indexed dimensions stay whole; accumulated, split places make the result partial."""
    if op.op not in ("index_put", "_unsafe_index_put"):
        return None
    x, values = op.needed("self"), op.needed("values")
    found = _indexed(op, x)
    if found is None:
        return None
    letters, inputs, picked, fixed, places = found
    sizes = tuple(op.sizes.get(dim[0], 1) if dim else 1 for dim in picked)
    if values.ndim > len(sizes) or any(n not in (1, m) for n, m in zip(values.shape[::-1], sizes[::-1], strict=False)):
        return None
    inputs |= {x.position: letters, values.position: op.broadcast(values.shape, picked, sizes)}
    if op.flag("accumulate"):
        return op.rule(inputs, [letters], fixed, [places], [x.position], [{x.position, values.position}])
    return op.rule(inputs, [letters], fixed | places)


__all__ = ["embedding", "embedding_backward", "gather", "index", "index_put"]
