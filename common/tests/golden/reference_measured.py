"""Fisher-weighted averaging and RegMean by NumPy, in F64, from their papers and from what Evolver's official code does with their options.

Each function takes the parameters, the models' tables, the statistics' tables and the tensor's name, and gives the merged tensor.
"""

import numpy as np


def wide(table, name, shape):
    return np.asarray(table.get(name, np.zeros(shape)), np.float64)


def fisher(p, models, statistics, name, options):
    """sum c_i (F_i + s) theta_i / sum c_i (F_i + s)"""
    smooth = p.shared("smooth", 1e-10)
    values = np.stack([np.asarray(m[name], np.float64) for m in models])
    fishers = np.stack([wide(s, name, values[0].shape) for s in statistics])
    coefficients = np.array(p.each("weight", 1.0))
    how = options.get("fisher_normalize", "none")
    if how != "none":
        names = [name] if how == "param" else list(models[0])
        norms = [np.sqrt(sum((wide(s, n, models[0][n].shape) ** 2).sum() for n in names)) for s in statistics]
        shares = 1 / (np.array(norms) + smooth)
        coefficients = coefficients * shares / shares.sum()
    weights = coefficients.reshape(-1, *[1] * (values.ndim - 1)) * (fishers + smooth)
    return (weights * values).sum(0) / weights.sum(0)


def regmean(p, models, statistics, name, options):
    """W^T = (sum c_i G_i)^-1 sum c_i G_i W_i^T; what has no Gram matrices everywhere is the weighted mean."""
    values = [np.asarray(m[name], np.float64) for m in models]
    shares = np.array(p.each("weight", 1.0))
    shares = shares / shares.sum()
    mean = sum(c * v for c, v in zip(shares, values))
    transposed = all(name + ".transposed" in s for s in statistics)
    if p.shared("plain_mean", False) or not (transposed or all(name in s for s in statistics)):
        return mean
    grams = [np.asarray(s[name + ".transposed" * transposed], np.float64) for s in statistics]
    reduce = p.shared("reduce_nondiag", 1.0)
    grams = [g * np.where(np.eye(len(g)) == 1, 1.0, reduce) for g in grams]
    inputs = [v if transposed else v.T for v in values]
    left, right = sum(c * g for c, g in zip(shares, grams)), sum(c * g @ w for c, g, w in zip(shares, grams, inputs))
    unseen = np.diag(left) == 0
    left[unseen, unseen] = 1.0
    right[unseen] = (mean if transposed else mean.T)[unseen]
    merged = np.linalg.solve(left, right)
    return merged if transposed else merged.T


METHODS = {"fisher": fisher, "regmean": regmean}
