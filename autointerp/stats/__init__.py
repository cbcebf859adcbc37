"""Measures of agreement, what chance gives for them, and their intervals. numpy only.

A measure that has no value is None, never 0. Which measures lead follows 2506.05774: Pearson, cosine, average
precision (AUPRC), F1 and IoU pass both of its sanity checks; recall, AUROC and balanced accuracy do not, and are
given beside them.
"""

from autointerp.stats.agreement import correlation_interval, kappa, spearman, top_share
from autointerp.stats.binary import binary_chance, binary_metrics, share_interval
from autointerp.stats.calibration import (
    Calibration,
    by_habit,
    fit_calibration,
    natural_average_precision,
    natural_precision,
    probability_error,
    yes_rate,
)
from autointerp.stats.clustered import clustered_chance, dependent_share_interval
from autointerp.stats.correlation import cosine, pearson, pooled_pearson_interval
from autointerp.stats.lending import shared_interval
from autointerp.stats.means import (
    Paired,
    Unpaired,
    mean_interval,
    paired_difference,
    ratio_interval,
    unpaired_difference,
)
from autointerp.stats.ranking import (
    auroc,
    average_precision,
    average_precision_chance,
    average_precision_interval,
    by_quantile,
    chance_corrected,
)
from autointerp.stats.student import LEVEL, student_t
from autointerp.stats.variance import variance_components, variance_shares

__all__ = [
    "LEVEL",
    "Calibration",
    "Paired",
    "Unpaired",
    "auroc",
    "average_precision",
    "average_precision_chance",
    "average_precision_interval",
    "binary_chance",
    "binary_metrics",
    "by_habit",
    "by_quantile",
    "chance_corrected",
    "clustered_chance",
    "correlation_interval",
    "cosine",
    "dependent_share_interval",
    "fit_calibration",
    "kappa",
    "mean_interval",
    "natural_average_precision",
    "natural_precision",
    "paired_difference",
    "pearson",
    "pooled_pearson_interval",
    "probability_error",
    "ratio_interval",
    "share_interval",
    "shared_interval",
    "spearman",
    "student_t",
    "top_share",
    "unpaired_difference",
    "variance_components",
    "variance_shares",
    "yes_rate",
]
