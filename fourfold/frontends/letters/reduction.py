"""Letters of reductions, normalisations, poolings and losses."""

from __future__ import annotations

from fourfold.frontends.letters.op import NONE, Letters, Operand, OpLetters, flat
from fourfold.letters import ShardingRule

SUMS = frozenset("sum mean".split())
WHOLE = frozenset("""amax amin max min aminmax argmax argmin any all prod var std var_mean std_mean norm linalg_vector_norm logsumexp nansum
                  count_nonzero median nanmedian""".split())
ALONG = frozenset("""softmax _softmax log_softmax _log_softmax _safe_softmax _softmax_backward_data _log_softmax_backward_data""".split())
POOLS = frozenset("""max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
                  adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d
                  upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d
                  avg_pool2d_backward max_pool2d_with_indices_backward _adaptive_avg_pool2d_backward adaptive_avg_pool2d_backward
                  upsample_nearest2d_backward upsample_bilinear2d_backward upsample_nearest1d_backward upsample_nearest3d_backward
                  reflection_pad2d replication_pad2d""".split())


def reduction(op: OpLetters) -> ShardingRule | None:
    """What is reduced stays whole, but under a sum or mean, which may be left partial."""
    if op.op not in SUMS and op.op not in WHOLE or len(op.operands) != 1:
        return None
    x = op.operands[0]
    dims = op.axes("dim", x.ndim)
    if op.op in ("argmax", "argmin") and op.args.get("dim") is None or op.op in ("max", "min") and "dim" not in op.args:
        dims = frozenset(range(x.ndim))
    letters = op.named(x.shape)
    kept = [NONE if d in dims else letters[d] for d in range(x.ndim)]
    left = tuple(letters[d] for d in range(x.ndim) if d not in dims)
    reduced = set(flat(letters[d] for d in dims if d < x.ndim))
    outputs = [tuple(kept) if len(shape) == x.ndim else left for shape in op.results]
    if any(len(made) != len(shape) for made, shape in zip(outputs, op.results, strict=True)):
        return None
    if op.op in SUMS:
        return op.rule({x.position: letters}, outputs, sums=[reduced], linear=[{x.position}], means=[0] if op.op == "mean" else [])
    if len(op.results) == 1 and op.op in ("amax", "amin", "max", "min"):
        return op.rule({x.position: letters}, outputs, sums=[reduced], extremes={0: op.op.removeprefix("a")})
    return op.rule({x.position: letters}, outputs, reduced)


def along(op: OpLetters) -> ShardingRule | None:
    """A softmax and its gradient: the dimension stays whole."""
    if op.op not in ALONG:
        return None
    x = op.operands[0]
    letters = op.named(x.shape)
    fixed = letters[op.integer("dim") % max(x.ndim, 1)] if x.ndim else ()
    linear = [{op.needed("grad_output").position}] if op.op.endswith("_backward_data") else []
    return op.rule({o.position: letters for o in op.operands}, [letters], fixed, linear=linear)


def layer_norm(op: OpLetters) -> ShardingRule | None:
    """Normalised dimensions stay whole, the outer ones may be split; gradients by weight and bias are sums over them."""
    if op.op not in ("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "native_layer_norm_backward", "_fused_rms_norm_backward"):
        return None
    x = op.needed("input")
    inner = len(op.numbers("normalized_shape"))
    letters = op.named(x.shape)
    outer, last = letters[: x.ndim - inner], letters[x.ndim - inner :]
    fixed = set(flat(last))
    inputs: dict[int, Letters] = {x.position: letters}
    for name in ("weight", "bias"):
        if (learned := op.tensor(name)) is not None:
            inputs[learned.position] = last
    for name in ("mean", "rstd"):
        if (found := op.tensor(name)) is not None:
            inputs[found.position] = (*outer, *(NONE,) * (found.ndim - len(outer)))
    if op.op.endswith("_backward"):
        gradient = op.needed("grad_out")
        inputs[gradient.position] = letters
        outputs, sums = list[Letters](), list[set[str]]()
        for i, shape in enumerate(op.results):
            outputs.append(letters if i == 0 and shape == x.shape else last)
            sums.append(set() if i == 0 and shape == x.shape else set(flat(outer)))
        return op.rule(inputs, outputs, fixed, sums, linear=[{gradient.position}])
    return op.rule(inputs, [letters if shape == x.shape else (*outer, *(NONE,) * (len(shape) - len(outer))) for shape in op.results], fixed)


def batch_norm(op: OpLetters) -> ShardingRule | None:
    """Channels may be split; examples and points too where the statistics are given."""
    if op.op not in ("batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional", "_native_batch_norm_legit",
                     "native_batch_norm", "native_batch_norm_backward", "_batch_norm_with_update_functional"):
        return None
    x = op.tensor("input") or op.operands[0]
    training = op.op != "_native_batch_norm_legit_no_training" and (op.flag("training") or op.flag("train") or "update" in op.op)
    letters = op.named(x.shape)
    channel, others = letters[1] if x.ndim > 1 else letters[0], set(flat(letters)) - set(letters[1] if x.ndim > 1 else letters[0])
    inputs: dict[int, Letters] = {o.position: letters if o.shape == x.shape else (channel,) * o.ndim for o in op.operands}
    outputs, sums = list[Letters](), list[set[str]]()
    backward = op.op.endswith("_backward")
    for shape in op.results:
        outputs.append(letters if shape == x.shape else (channel,) if shape == (x.shape[1],) else (NONE,) * len(shape))
        sums.append(others if backward and shape != x.shape else set())
    linear = [{op.needed("grad_out").position}] if backward else []
    return op.rule(inputs, outputs, others if training else (), sums, linear=linear)


def group_norm(op: OpLetters) -> ShardingRule | None:
    """Only the examples may be split."""
    if op.op not in ("group_norm", "native_group_norm", "instance_norm"):
        return None
    x = op.needed("input")
    letters = op.named(x.shape)
    batch, fixed = letters[0], set(flat(letters[1:]))
    inputs: dict[int, Letters] = {x.position: letters}
    outputs: list[Letters] = []
    for shape in op.results:
        rest = letters[1:] if shape == x.shape else op.named(shape[1:])
        fixed |= set(flat(rest))
        outputs.append((batch, *rest))
    return op.rule(inputs, outputs, fixed)


def pooling(op: OpLetters) -> ShardingRule | None:
    """Examples and channels may be split, points not."""
    if op.op not in POOLS or not op.operands:
        return None
    x = op.operands[0]
    spatial = 1 if "1d" in op.op else 3 if "3d" in op.op else 2
    outer = op.named(x.shape[: x.ndim - spatial])
    fixed: set[str] = set()

    def letters(shape: tuple[int, ...]) -> Letters:
        rest = op.named(shape[len(outer):])
        fixed.update(flat(rest))
        return (*outer, *rest)

    inputs = {o.position: letters(o.shape) for o in op.operands}
    outputs = [letters(shape) for shape in op.results]
    linear = [{x.position}] if op.op.endswith("_backward") or "max" not in op.op else []
    return op.rule(inputs, outputs, fixed, linear=linear)


LOSSES = frozenset("mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits".split())


def loss(op: OpLetters) -> ShardingRule | None:
    """An element-wise loss and its mean (reduction 1) or sum (2). Of a negative log likelihood the classes stay whole, and under a mean the examples,
    since each device would divide by its own weights.
    """
    if op.op in LOSSES:
        x = op.needed("self")
        if any(o.shape != x.shape for o in op.operands):
            return None
        letters, how = op.named(x.shape), op.integer("reduction", 1)
        inputs = {o.position: letters for o in op.operands}
        if how == 0:
            return op.rule(inputs, [letters])
        return op.rule(inputs, [()], sums=[set(flat(letters))], means=[0] if how == 1 else [])
    if op.op == "cross_entropy_loss":
        x, target = op.needed("self"), op.needed("target")
        letters, how = op.named(x.shape), op.integer("reduction", 1)
        rows = (*letters[: x.ndim > 1], *letters[2:])
        classes = letters[x.ndim > 1]
        inputs = {x.position: letters, target.position: letters if target.floating else rows}
        if (weight := op.tensor("weight")) is not None:
            inputs[weight.position] = (classes,)
        return op.rule(inputs, [rows if how == 0 else ()], {*classes, *(flat(rows) if how == 1 else ())}, [set(flat(rows)) if how == 2 else ()])
    if op.op in ("nll_loss_forward", "nll_loss", "nll_loss_nd"):
        x, target = op.needed("self"), op.needed("target")
        if x.ndim != 2:
            return None
        rows, classes = op.named(x.shape)
        how = op.integer("reduction", 1)
        inputs: dict[int, Letters] = {x.position: (rows, classes), target.position: (rows,)}
        if (weight := op.tensor("weight")) is not None:
            inputs[weight.position] = (classes,)
        outputs: list[Letters] = [(rows,) if shape == (x.shape[0],) and how == 0 else () for shape in op.results]
        sums = [set(rows) if made == () and how == 2 else set[str]() for made in outputs]
        return op.rule(inputs, outputs, {*classes, *(rows if how == 1 else ())}, sums)
    return None


def nll_backward(op: OpLetters) -> ShardingRule | None:
    """The gradient by the scores: rows may be split, since the total weight is given."""
    if op.op != "nll_loss_backward":
        return None
    x, target, gradient, total = (op.needed(name) for name in ("self", "target", "grad_output", "total_weight"))
    if x.ndim != 2:
        return None
    rows, classes = op.named(x.shape)
    inputs: dict[int, Letters] = {x.position: (rows, classes), target.position: (rows,), gradient.position: (rows,) * gradient.ndim,
                                  total.position: ()}
    if isinstance(weight := op.args.get("weight"), Operand):
        inputs[weight.position] = (classes,)
    return op.rule(inputs, [(rows, classes)], classes, linear=[{gradient.position}])


__all__ = ["along", "batch_norm", "group_norm", "layer_norm", "loss", "nll_backward", "pooling", "reduction"]
