"""Estimates from samples, with 95% intervals."""
from math import comb, sqrt

import numpy as np


def pass_at_k(num_samples, num_right, k):
    """Probability that one of k out of num_samples samples is right. Chen et al. 2021, eq. 1."""
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def wilson(p, n):
    """95% interval of a share p of n independent trials (Wilson score: sound near 0 and 1, too)."""
    z = 1.96
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


def mean_with_interval(per_prompt):
    """{"value", "ci95"} of a mean, from the spread between prompts: the samples of one prompt are
    not independent of each other, so they don't count one by one."""
    x = np.asarray(per_prompt, dtype=float)
    half = 1.96 * x.std(ddof=1) / sqrt(len(x)) if len(x) > 1 else 0.0
    return {"value": x.mean(), "ci95": [x.mean() - half, x.mean() + half]}
