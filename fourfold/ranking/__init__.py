"""Losses, metrics, weights and transformations of learning to rank, with Rax's names and semantics, in torch"""

from fourfold.ranking.lambdaweights import dcg2_lambdaweight, dcg_lambdaweight, labeldiff_lambdaweight
from fourfold.ranking.lists import masked_mean, masked_sum, normalize_probabilities
from fourfold.ranking.losses import (
    listmle_loss,
    pointwise_mse_loss,
    pointwise_sigmoid_loss,
    poly1_softmax_loss,
    softmax_loss,
    unique_softmax_loss,
)
from fourfold.ranking.metrics import (
    ap,
    ap_metric,
    dcg,
    dcg_metric,
    default_discount_fn,
    default_gain_fn,
    mrr,
    mrr_metric,
    ndcg,
    ndcg_metric,
    opa,
    opa_metric,
    precision,
    precision_metric,
    recall,
    recall_metric,
)
from fourfold.ranking.pairs import (
    compute_pairs,
    pairwise_hinge_loss,
    pairwise_logistic_loss,
    pairwise_loss,
    pairwise_mse_loss,
    pairwise_qr_loss,
    pairwise_soft_zero_one_loss,
)
from fourfold.ranking.ranks import approx_cutoff, approx_ranks, cutoff, ranks
from fourfold.ranking.transformations import approx_t12n, bound_t12n, gumbel_t12n, segment_t12n

__all__ = [
    "ap", "ap_metric", "approx_cutoff", "approx_ranks", "approx_t12n", "bound_t12n", "compute_pairs", "cutoff", "dcg", "dcg2_lambdaweight",
    "dcg_lambdaweight", "dcg_metric", "default_discount_fn", "default_gain_fn", "gumbel_t12n", "labeldiff_lambdaweight", "listmle_loss",
    "masked_mean", "masked_sum", "mrr", "mrr_metric", "ndcg", "ndcg_metric", "normalize_probabilities", "opa", "opa_metric", "pairwise_hinge_loss",
    "pairwise_logistic_loss", "pairwise_loss", "pairwise_mse_loss", "pairwise_qr_loss", "pairwise_soft_zero_one_loss", "pointwise_mse_loss",
    "pointwise_sigmoid_loss", "poly1_softmax_loss", "precision", "precision_metric", "ranks", "recall", "recall_metric", "segment_t12n",
    "softmax_loss", "unique_softmax_loss",
]
