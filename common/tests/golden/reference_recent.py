"""Training-free merge methods since TIES in NumPy, F64; as reference_mergekit.py, and `GLOBAL` ones take the whole model at once."""

import numpy as np

from reference_mergekit import deltas, f64


def weighted(p, base, models):
    return [w * d for w, d in zip(p.each("weight", 1.0), deltas(base, models))]


def consensus(p, base, models):
    ds = deltas(base, models)
    total = sum(weighted(p, base, models))
    matters = sum((np.abs(d) > t * np.abs(total - d)).astype(int) for d, t in zip(ds, p.each("tall_lambda", 0.4)))
    return f64(base) + p.shared("lambda", 1.0) * total * (matters >= p.shared("k", 2))


def magmax(p, base, models):
    ds = np.array(weighted(p, base, models))
    first = np.argmax(np.abs(ds), axis=0)
    return f64(base) + p.shared("lambda", 1.0) * np.take_along_axis(ds, first[None], 0)[0]


def lines(p, base, models):
    scale = p.shared("alpha", 0.0) + p.shared("beta", 1.0) * p.depth
    return f64(base) + scale * sum(weighted(p, base, models))


def emr(p, base, tensors):
    table = {n: np.array(deltas(base[n], [m[n] for m in tensors])) for n in base}
    task, unified = p.shared("task", 0), {}
    for n, ds in table.items():
        sign = np.sign(ds.sum(0))
        unified[n] = sign * np.maximum(ds * sign, 0).max(0)
    scale = p.shared("lambda", 1.0)
    if task:
        unified = {n: u * (u * table[n][task - 1] > 0) for n, u in unified.items()}
        kept = sum(np.abs(u).sum() for u in unified.values())
        if kept > 0:
            scale *= sum(np.abs(ds[task - 1]).sum() for ds in table.values()) / kept
    return {n: f64(base[n]) + scale * unified[n] for n in base}


def localize_stitch(p, base, tensors):
    table = {n: deltas(base[n], [m[n] for m in tensors]) for n in base}
    size = sum(b.size for b in base.values())
    kept = int(p.shared("density", 0.05) * size)
    cuts = []
    for index in range(len(tensors)):
        order = np.sort(np.concatenate([np.abs(ds[index]).ravel() for ds in table.values()]))
        cuts.append(order[size - kept] if kept else np.inf)
    out = {}
    for n, ds in table.items():
        masks = np.array([np.abs(d) >= c for d, c in zip(ds, cuts)])
        out[n] = f64(base[n]) + p.shared("lambda", 1.0) * (np.array(ds) * masks).sum(0) / np.maximum(masks.sum(0), 1)
    return out


def svd(a):
    """Without null directions."""
    u, s, v = np.linalg.svd(a, full_matrices=False)
    real = s > 1e-10 * s[0] if s.size and s[0] > 0 else np.zeros(s.shape, bool)
    return u[:, real], s[real], v[real]


def polar(a):
    u, _, v = svd(a)
    return u @ v


def matrices(rule):
    def merge(p, base, models):
        ds = weighted(p, base, models)
        merged = rule(p, ds) if base.ndim == 2 and p.shared("matrices", True) else sum(ds) / len(ds)
        return f64(base) + p.shared("lambda", 1.0) * merged

    return merge


def tsv(p, ds):
    side = min(ds[0].shape)
    keep = int((p.shared("sv_reduction", 0.0) or 1 / len(ds)) * side)
    parts = [svd(d) for d in ds]
    u, v = np.hstack([u[:, :keep] for u, _, _ in parts]), np.vstack([v[:keep] for _, _, v in parts])
    return polar(u) @ np.diag(np.concatenate([s[:keep] for _, s, _ in parts])) @ polar(v)


def iso_c(p, ds):
    u, s, v = svd(sum(ds))
    return s.sum() / min(ds[0].shape) * (u @ v)


def iso_cts(p, ds):
    side = min(ds[0].shape)
    own = int(round((side - int(side * p.shared("common_space_fraction", 0.8))) / len(ds)))
    own = min(own, side // len(ds))
    shared = side - own * len(ds)
    u, s, v = svd(sum(ds))
    largest = s[0] if s.size else 0.0
    u, s, v = u[:, :shared], s[:shared], v[:shared]
    us, ss, vs = [], [], []
    for d in ds:
        a, b, c = svd(d - u @ u.T @ d)
        real = int((b[:own] > 1e-10 * largest).sum())
        us.append(a[:, :real])
        ss.append(b[:real])
        vs.append(c[:real])
    mean = np.concatenate(ss + [s]).sum() / side
    return mean * polar(np.hstack(us + [u])) @ polar(np.vstack(vs + [v]))


def knots(p, ds):
    u, s, v = svd(np.hstack(ds))
    columns, parts = ds[0].shape[1], []
    for index, density in enumerate(p.each("density", 1.0)):
        part = v[:, index * columns : (index + 1) * columns]
        keep = max(1, int(density * part.size))
        if part.size and keep < part.size:
            cut = np.sort(np.abs(part).ravel())[part.size - keep] if density else np.inf
            part = np.where(np.abs(part) >= cut, part, 0)
        parts.append(part)
    parts = np.array(parts)
    agree = (parts != 0) & ((parts > 0) == (parts.sum(0) >= 0))
    return u @ np.diag(s) @ ((parts * agree).sum(0) / np.maximum(agree.sum(0), 1))


def wudi(p, ds):
    merged, tasks = sum(ds), [d for d in ds if np.any(d)]
    mean, square = np.zeros_like(merged), np.zeros_like(merged)
    for step in range(1, p.shared("iterations", 300) + 1):
        gradient = sum((2 * ((merged - d) @ d.T @ d) / (d * d).sum() for d in tasks), np.zeros_like(merged))
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        merged = merged - p.shared("learning_rate", 1e-5) * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return merged


GLOBAL = {"emr", "localize_stitch"}
METHODS = {
    "consensus": consensus, "magmax": magmax, "lines": lines, "emr": emr, "localize_stitch": localize_stitch,
    "tsv": matrices(tsv), "iso_c": matrices(iso_c), "iso_cts": matrices(iso_cts), "knots": matrices(knots), "wudi": matrices(wudi),
}
