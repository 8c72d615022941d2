"""mergekit's merge methods in NumPy, F64, one tensor at a time: `method(p, base, models)`.

`p.shared(name, default)` is a parameter of the merge and `p.each(name, default)` one of every model, both at this tensor; `base` and `models` are F32
arrays, `base` None without one. Task vectors are rounded to F32, as stored ones are.
"""

import numpy as np

import philox

f64 = lambda x: np.asarray(x, np.float64)


def deltas(base, models):
    return [f64((m - base).astype(np.float32)) for m in models]


def linear(p, base, models):
    weights = np.array(p.each("weight", 1.0))
    total = sum(w * f64(m) for w, m in zip(weights, models))
    return total / weights.sum() if p.shared("normalize", True) else total


def passthrough(p, base, models):
    return p.each("scale", 1.0)[0] * f64(models[0])


def arc(t, a, b, parallel):
    """Interpolates along the last axis."""
    length = lambda x: np.linalg.norm(x, axis=-1, keepdims=True)
    cos = np.clip((a * b).sum(-1, keepdims=True) / (np.maximum(length(a), 1e-12) * np.maximum(length(b), 1e-12)), -1, 1)
    angle = np.where(parallel(cos), 1.0, np.arccos(cos))
    curved = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return np.where(parallel(cos), (1 - t) * a + t * b, curved)


def slerp(p, base, models):
    a, b = f64(base).ravel(), f64(models[0]).ravel()
    return arc(p.shared("t", 0.5), a, b, lambda cos: np.abs(cos) > 0.9995).reshape(base.shape)


def nuslerp(p, base, models):
    shape = models[0].shape
    a, b = deltas(base, models) if base is not None else map(f64, models)
    w = p.each("weight", 1.0)
    t = 0.5 if abs(sum(w)) < 1e-6 else w[1] / sum(w)
    parallel = lambda cos: 1 - cos**2 <= 1e-16
    if p.shared("nuslerp_flatten", True):
        merged = arc(t, a.ravel(), b.ravel(), parallel).reshape(shape)
    elif p.shared("nuslerp_row_wise", False):
        merged = np.moveaxis(arc(t, np.moveaxis(a, 0, -1), np.moveaxis(b, 0, -1), parallel), -1, 0)
    else:
        merged = arc(t, a, b, parallel)
    return merged if base is None else f64(base) + merged


def multislerp(p, base, models):
    vectors = [v.ravel() for v in (deltas(base, models) if base is not None else map(f64, models))]
    if len(models) == 1:
        return f64(models[0])
    w, eps = np.array(p.each("weight", 1.0)), p.shared("eps", 1e-8)
    if p.shared("normalize_weights", True):
        w = w / w.sum()
    norms = np.array([np.linalg.norm(v) for v in vectors])
    units = [v / (n + eps) for v, n in zip(vectors, norms)]
    mean = sum(x * u for x, u in zip(w, units))
    if np.linalg.norm(mean) < eps:
        merged = sum(x * v for x, v in zip(w, vectors))
    else:
        mean = mean / np.linalg.norm(mean)
        tangent = sum(x * (u - (u @ mean) * mean) for x, u in zip(w, units))
        angle = np.linalg.norm(tangent) + eps
        merged = (mean * np.cos(angle) + tangent * np.sin(angle) / angle) * (w @ norms)
    merged = merged.reshape(models[0].shape)
    return merged if base is None else f64(base) + merged


def karcher(p, base, models):
    if len(models) == 1:
        return f64(models[0])
    tol = p.shared("tol", 1e-5)
    vectors = [f64(m).ravel() for m in models]
    norms = [np.linalg.norm(v) for v in vectors]
    units = [v / n for v, n in zip(vectors, norms) if n > tol]
    if not units:
        return np.zeros(models[0].shape)
    mean = sum(units) / len(units)
    mean = units[0] if np.linalg.norm(mean) < tol else mean / np.linalg.norm(mean)
    for _ in range(p.shared("max_iter", 10)):
        tangent = np.zeros_like(mean)
        for unit in units:
            cos = np.clip(mean @ unit, -1, 1)
            angle = np.arccos(cos)
            if angle >= tol:
                tangent += angle / np.sin(angle) * (unit - cos * mean) / len(units)
        step = np.linalg.norm(tangent)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) / step * tangent
        mean /= np.linalg.norm(mean)
    return (np.mean(norms) * mean).reshape(models[0].shape)


def model_stock(p, base, models):
    ds = deltas(base, models)
    if not p.shared("filter_wise", False):
        ds = [d.reshape(1, -1) for d in ds]
    elif base.ndim < 2:
        ds = [d.reshape(1, -1) for d in ds]
    k, length = len(ds), lambda x: np.linalg.norm(x, axis=-1)
    cosines = [np.clip((a * b).sum(-1) / np.maximum(length(a) * length(b), 1e-6), -1, 1) for i, a in enumerate(ds) for b in ds[i + 1 :]]
    cos = np.mean(cosines, axis=0)[..., None]
    divisor = 1 + (k - 1) * cos
    t = np.where(np.abs(divisor) < 1e-6, 0.0, k * cos / np.where(np.abs(divisor) < 1e-6, 1, divisor))
    return f64(base) + (t * sum(ds) / k).reshape(base.shape)


def nearswap(p, base, models):
    a, b = f64(base), f64(models[0])
    weight = np.clip(p.shared("t", 1e-4) / np.maximum(np.abs(a - b), 1e-6), 0, 1)
    return weight * b + (1 - weight) * a


def arcee_fusion(p, base, models):
    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) + 1e-8

    q, m = softmax(f64(base)), softmax(f64(models[0]))
    divergence = (m * np.log(m / q)).sum(-1, keepdims=True)
    importance = (np.abs(deltas(base, models)[0]) * divergence).astype(np.float32)
    ranked = f64(np.sort(importance.ravel()))
    low, median, high = (ranked[int(share * (ranked.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= np.float32(median + 1.5 * (high - low)), f64(models[0]), f64(base))


def ram(p, base, models, plus=False):
    ds = np.array(deltas(base, models))
    counts = np.abs(ds) > p.shared("epsilon", 1e-5)
    contributors = counts.sum(0)
    factor = np.ones(len(ds))
    if plus:
        shared = (counts & (contributors > 1)).reshape(len(ds), -1).sum(1)
        unique = (counts & (contributors == 1)).reshape(len(ds), -1).sum(1)
        ratio = np.where(shared == 0, 0, shared / np.maximum(unique, p.shared("epsilon", 1e-5)))
        factor = 1 + p.shared("r", 0.1) * np.clip(ratio, 0, p.shared("alpha", 0.2))
    factor = factor.reshape((-1,) + (1,) * base.ndim)
    kept = ds * counts
    return f64(base) + np.where(contributors == 1, (kept * factor).sum(0), kept.sum(0) / np.maximum(contributors, 1))


def ramplus_tl(p, base, models):
    return ram(p, base, models, True)


def sce(p, base, models):
    ds = np.array(deltas(base, models))
    share = p.shared("select_topk", 1.0)
    if share < 1:
        variance = ds.var(0).astype(np.float32)
        kept = int(np.count_nonzero(variance) * share)
        cut = np.sort(variance.ravel())[variance.size - kept] if kept else np.inf
        ds = ds * (variance >= cut)
    positive = ds.sum(0) >= 0
    agree = (ds != 0) & ((ds > 0) == positive)
    energy = (ds**2).reshape(len(ds), -1).mean(1)
    weights = np.ones(len(ds)) / len(ds) if energy.sum() < 1e-6 else energy / energy.sum()
    weights = weights.reshape((-1,) + (1,) * base.ndim) * agree
    return f64(base) + (ds * weights).sum(0) / np.maximum(weights.sum(0), 1e-6)


def band(flat, first, last):
    """Keeps the magnitudes of ranks first ..= last, with what ties."""
    magnitude = np.abs(flat)
    order = np.sort(magnitude)
    low = order[first] if first > 0 else 0.0
    high = order[last] if last < flat.size - 1 else np.inf
    return np.where((magnitude >= low) & (magnitude <= high), flat, 0.0)


def magnitude(p, index, flat):
    density = p.each("density", 1.0)[index]
    keep = min(max(1, int(density * flat.size)), flat.size)
    return band(flat, flat.size - keep, flat.size - 1) if density > 0 else 0 * flat


def outliers(p, index, flat):
    density, gamma = p.each("density", 1.0)[index], p.each("gamma", 0.01)[index]
    if density >= 1:
        return flat
    keep, top = int(density * flat.size), int(gamma * flat.size)
    bottom = max(0, flat.size - keep - top)
    return band(flat, bottom, bottom + keep - 1) if keep else 0 * flat


def dropout(p, index, flat):
    density = p.each("density", 1.0)[index]
    if density >= 1:
        return flat
    kept = flat * (philox.draws(p.shared("seed", 0), p.name, index, flat.size) < philox.below(density))
    return kept / density if p.shared("rescale_by", "l1") == "density" and p.shared("rescale", True) else kept


def magprune(p, index, flat):
    density, epsilon = p.each("density", 1.0)[index], p.each("epsilon", 0.15)[index]
    if density >= 1 or density <= 0:
        return flat * density
    lines = flat.reshape(p.shape) if len(p.shape) >= 2 else flat.reshape(1, -1)
    order = np.argsort(np.abs(lines), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    place = ranks / (lines.shape[1] - 1) if lines.shape[1] > 1 else np.full(lines.shape, 0.5)
    probability = (density - epsilon + place * 2 * epsilon).ravel()
    kept = flat * (philox.draws(p.shared("seed", 0), p.name, index, flat.size) < philox.below(probability))
    return kept / probability if p.shared("rescale_by", "l1") == "density" and p.shared("rescale", True) else kept


def sparse(sparsify, elect, normalize, rescale):
    def merge(p, base, models):
        weights = np.array(p.each("weight", 1.0))
        rows = []
        for index, (delta, weight) in enumerate(zip(deltas(base, models), weights)):
            kept = sparsify(p, index, delta.ravel())
            if p.shared("rescale", rescale) and p.shared("rescale_by", "l1") == "l1":
                before, after = np.abs(delta).sum(), np.abs(kept).sum()
                if before >= 1e-8 and after >= 1e-8:
                    kept = kept * (before / after)
            rows.append(kept * weight)
        rows = np.array(rows)
        agree = np.ones(rows.shape, bool)
        if elect:
            agree = (rows != 0) & ((rows > 0) == (rows.sum(0) >= 0))
        merged, divisor = (rows * agree).sum(0), (weights[:, None] * agree).sum(0)
        if p.shared("normalize", normalize):
            merged = merged / np.where(np.abs(divisor) < 1e-8, 1, divisor)
        return f64(base) + p.shared("lambda", 1.0) * merged.reshape(base.shape)

    return merge


METHODS = {
    "linear": linear, "passthrough": passthrough, "slerp": slerp, "nuslerp": nuslerp, "multislerp": multislerp, "karcher": karcher,
    "model_stock": model_stock, "nearswap": nearswap, "arcee_fusion": arcee_fusion, "ram": ram, "ramplus_tl": ramplus_tl, "sce": sce,
    "task_arithmetic": sparse(lambda p, index, flat: flat, False, False, False),
    "ties": sparse(magnitude, True, True, False),
    "breadcrumbs": sparse(outliers, False, False, False),
    "breadcrumbs_ties": sparse(outliers, True, False, False),
    "dare_linear": sparse(dropout, False, False, True),
    "dare_ties": sparse(dropout, True, False, True),
    "della": sparse(magprune, True, True, True),
    "della_linear": sparse(magprune, False, False, True),
}
