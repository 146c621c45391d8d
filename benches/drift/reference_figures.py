"""Figures of SciPy, and of alibi-detect where it is installed, for fixed inputs: what Retune's own statistics have to agree with.

    python benches/drift/reference_figures.py

Inputs: x_i = sin(i) for i = 0 … 199, y_i = sin(1.1 i) + 0.1 for i = 0 … 149; the counts 10, 20, 30, 40 beside 12, 18, 33, 37, and
0, 5, 10 beside 5, 0, 10. Every figure has the 17 digits that tell any two doubles apart.
"""

import math
import warnings

import numpy as np
import scipy
from scipy.spatial.distance import cdist, jensenshannon
from scipy.stats import ks_2samp, kstwobign

COUNTS = [([10, 20, 30, 40], [12, 18, 33, 37]), ([0, 5, 10], [5, 0, 10])]
BANDWIDTHS = (0.5, 1.0, 2.0)


def show(name, value):
    print(f"{name}: {float(value):.17g}")


def psi(a, b, floor):
    """Sum over bins of (p - q) ln(p / q); an empty bin counts as `floor`, nothing is scaled again. Infinite without one."""
    p, q = (np.asarray(counts, float) / sum(counts) for counts in (a, b))
    if floor:
        p, q = np.maximum(p, floor), np.maximum(q, floor)
    with np.errstate(divide="ignore"):
        return np.sum((p - q) * np.log(p / q))


def psi_of_samples(x, y, bins):
    """Bins between the quantiles of `x`, open at both ends."""
    edges = np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1])
    counts = [np.bincount(np.searchsorted(edges, sample, side="right"), minlength=bins) for sample in (x, y)]
    return counts, psi(*counts, floor=1e-4)


def mmd2(x, y, sigma, unbiased):
    """Gaussian kernel exp(-d² / (2 sigma²))."""

    def kernel(a, b):
        return np.exp(-cdist(a[:, None], b[:, None], "sqeuclidean") / (2 * sigma**2))

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    n, m = len(x), len(y)
    if unbiased:
        return (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()
    return xx.mean() + yy.mean() - 2 * xy.mean()


def alibi(x, y):
    """alibi-detect's own functions in double precision, whichever backend is there."""
    try:
        import alibi_detect
        import torch
        from alibi_detect.utils.pytorch import GaussianRBF, mmd2, mmd2_from_kernel_matrix
    except ImportError as missing:
        print(f"alibi-detect's PyTorch part is not installed ({missing}): NumPy's figures above are by its formula")
        return
    x, y = torch.from_numpy(x)[:, None], torch.from_numpy(y)[:, None]
    for sigma in BANDWIDTHS:
        kernel = GaussianRBF(torch.tensor([sigma], dtype=torch.float64))
        with torch.no_grad():
            show(f"alibi-detect {alibi_detect.__version__} mmd2, unbiased, sigma {sigma}", mmd2(x, y, kernel))
            both = torch.cat([x, y])
            value = mmd2_from_kernel_matrix(kernel(both, both), len(y))
            show(f"alibi-detect {alibi_detect.__version__} mmd2_from_kernel_matrix, zero_diag, sigma {sigma}", value)


def main():
    warnings.simplefilter("ignore")
    print(f"NumPy {np.__version__}, SciPy {scipy.__version__}")
    x = np.array([math.sin(i) for i in range(200)])
    y = np.array([math.sin(1.1 * i) + 0.1 for i in range(150)])

    for name, method in (("asymptotic", "asymp"), ("exact", "exact")):
        found = ks_2samp(x, y, method=method)
        show(f"ks_2samp, {name}: statistic", found.statistic)
        show(f"ks_2samp, {name}: p", found.pvalue)
    d = ks_2samp(x, y).statistic
    n, m = len(x), len(y)
    show("Kolmogorov's limit at sqrt(nm/(n+m)) D", kstwobign.sf(math.sqrt(n * m / (n + m)) * d))

    for a, b in COUNTS:
        for base, unit in ((2, "bits"), (math.e, "nats")):
            distance = jensenshannon(a, b, base=base)
            show(f"jensenshannon {a} {b}, {unit}: distance", distance)
            show(f"jensenshannon {a} {b}, {unit}: divergence, its square", distance**2)
        for floor in (0, 1e-4, 1e-6):
            show(f"PSI {a} {b}, " + (f"empty bins as {floor:g}" if floor else "no floor"), psi(a, b, floor))
    counts, value = psi_of_samples(x, y, bins=10)
    print(f"x and y in 10 bins between x's quantiles: {[c.tolist() for c in counts]}")
    show("PSI of x and y, empty bins as 0.0001", value)
    show("jensenshannon of the same, bits: distance", jensenshannon(*counts, base=2))

    for sigma in BANDWIDTHS:
        show(f"MMD², Gaussian, sigma {sigma}, unbiased", mmd2(x, y, sigma, True))
        show(f"MMD², Gaussian, sigma {sigma}, biased", mmd2(x, y, sigma, False))
    alibi(x, y)


if __name__ == "__main__":
    main()
