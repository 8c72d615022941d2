"""Golden merges: an independent NumPy reference for linear, task arithmetic, TIES and PCB-Merging (paper and script).

    python3 common/tests/golden/make_merges.py common/tests/golden/merges.json     (needs numpy 2)

Everything is F64 over task vectors rounded to F32 (T = float32(model - base)); scores of PCB are rounded to F32 before they are ranked, and the
result is rounded to F32 once. Formulas: TIES as mergekit computes it; PCB from the paper (section 3) and from the official script.
"""

import json
import sys

import numpy as np

SHAPES = [("a.weight", (3, 5)), ("b.bias", (1,)), ("c.weight", (64, 33)), ("d.weight", (4097,))]


def models(seed, count, shapes, scale=1e-3, same=()):
    """A base and `count` models near it, as {name: float32 array}; the models in `same` equal the base."""
    draw = np.random.default_rng(seed)
    base = {name: draw.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes}
    others = []
    for index in range(count):
        delta = {name: draw.normal(0, scale, shape) * (draw.random(shape) < 0.9) for name, shape in shapes}
        others.append({n: base[n] if index in same else (base[n] + delta[n]).astype(np.float32) for n in base})
    return base, others


def linear(base, tensors, weights, normalize=True):
    divisor = sum(weights) if normalize else 1.0
    return {n: sum(w / divisor * m[n].astype(np.float64) for w, m in zip(weights, tensors)) for n in base}


def vectors(base, tensors):
    return [{n: (m[n] - base[n]).astype(np.float32).astype(np.float64) for n in base} for m in tensors]


def task_arithmetic(base, tensors, weights, lam=1.0):
    deltas = vectors(base, tensors)
    return {n: base[n] + lam * sum(w * d[n] for w, d in zip(weights, deltas)) for n in base}


def ties(base, tensors, weights, density, lam=1.0, normalize=True):
    out = {}
    for name in base:
        rows = []
        for delta, weight in zip(vectors(base, tensors), weights):
            flat = delta[name].ravel()
            keep = max(1, int(density * flat.size))
            cut = np.sort(np.abs(flat))[::-1][keep - 1] if keep < flat.size else 0.0
            rows.append(np.where(np.abs(flat) >= cut, flat * weight, 0.0))
        rows = np.array(rows)
        sign = np.where(rows.sum(0) >= 0, 1.0, -1.0)
        agree = (np.sign(rows) == sign) & (rows != 0)
        merged = (rows * agree).sum(0)
        if normalize:
            divisor = (np.array(weights)[:, None] * agree).sum(0)
            merged = merged / np.where(np.abs(divisor) < 1e-8, 1.0, divisor)
        out[name] = base[name] + lam * merged.reshape(base[name].shape)
    return out


def flat(base, tensors):
    deltas = vectors(base, tensors)
    return np.array([np.concatenate([d[n].ravel() for n in sorted(base)]) for d in deltas])


def norm(row):
    low, high = row.min(), row.max()
    return (row - low) / (high - low) if high > low else np.zeros_like(row)


def softmax(row):
    e = np.exp(row)
    return e / e.sum()


def pcb_paper(t, weights, ratio):
    n, d = t.shape
    total, divisor = np.zeros(d), np.zeros(d)
    for i in range(n):
        intra = softmax(n * norm(t[i] * t[i]))
        inter = sum(softmax(norm(t[i] * t[j])) for j in range(n))
        beta = (intra * inter).astype(np.float32)
        cut = np.sort(beta)[min(d - 1, int((1 - ratio) * d))]
        beta = np.where(beta >= cut, beta, 0).astype(np.float64)
        total += weights[i] * beta * t[i]
        divisor += beta
    return np.divide(total, divisor, out=np.zeros(d), where=divisor != 0)


def pcb_script(t, weights, ratio, winsor=0.0001):
    n, d = t.shape
    magnitude = np.abs(t)
    order = np.sort(magnitude, axis=1)
    low_index = min(d - 1, int(d * winsor))
    high_index = max(low_index, int(d * (1 - winsor) - 1))
    low, high = order[:, low_index : low_index + 1], order[:, high_index : high_index + 1]
    magnitude = np.clip(magnitude, low, high)
    clamped = np.sign(t) * magnitude
    scaled = np.divide(magnitude - low, high - low, out=np.zeros_like(magnitude), where=high > low)
    score = (np.exp(n * scaled**2) * np.tanh(t * t.sum(0))).astype(np.float32).astype(np.float64)
    order = np.sort(score, axis=1)
    cut, top = order[:, min(d - 1, int(d * (1 - ratio)))][:, None], order[:, -1:]
    keep = np.divide(np.maximum(score, cut) - cut, top - cut, out=np.zeros_like(score), where=top > cut)
    weights = np.array(weights)[:, None]
    return (weights * clamped * keep).sum(0) / np.maximum(keep.sum(0), 1e-12)


def unflat(base, row):
    out, start = {}, 0
    for name in sorted(base):
        size = base[name].size
        out[name] = base[name] + row[start : start + size].reshape(base[name].shape)
        start += size
    return out


def check_fixture():
    """A toy case worked out by hand elsewhere: where each variant keeps what."""
    k = np.arange(20)
    t = np.array([0.01 * (1 + k % 5) * np.sin(1.7 * i + 0.9 * k + 0.3) for i in range(3)])
    paper = pcb_paper(t, [1, 1, 1], 0.3)
    assert np.allclose(paper[[3, 4, 14]], [-0.0399969, 0.0065134, 0.0447396], atol=1e-6), paper
    script = pcb_script(t, [1, 1, 1], 0.3, 0.01)
    assert np.allclose(script[[2, 7]], [-0.0211662, 0.0093462], atol=1e-6), script
    assert np.allclose(script[19], 0.0425218, atol=1e-6), script


def main():
    check_fixture()
    cases = []

    def case(name, method, parameters, model_parameters, base, tensors, result):
        encode = lambda table: {n: {"shape": list(v.shape), "hex": np.asarray(v, np.float32).tobytes().hex()} for n, v in table.items()}
        cases.append({
            "name": name, "method": method, "parameters": parameters, "model_parameters": model_parameters,
            "base": encode(base), "models": [encode(m) for m in tensors], "expected": encode(result),
        })

    for seed, count, shapes, same in [(1, 3, SHAPES, ()), (2, 2, SHAPES[:2], ()), (3, 1, SHAPES[:1], ()), (4, 4, SHAPES[2:3], (1,)), (5, 2, SHAPES[1:2], ())]:
        base, tensors = models(seed, count, shapes, same=same)
        weights = [0.5 + 0.25 * i for i in range(count)]
        per_model = [{"weight": w} for w in weights]
        case(f"linear-{seed}", "linear", {}, per_model, base, tensors, linear(base, tensors, weights))
        case(f"arithmetic-{seed}", "task_arithmetic", {"lambda": 0.4}, per_model, base, tensors, task_arithmetic(base, tensors, weights, 0.4))
        for density, normalize in [(0.2, True), (1.0, False)]:
            case(f"ties-{seed}-{density}", "ties", {"density": density, "normalize": normalize, "lambda": 0.9}, per_model, base, tensors,
                 ties(base, tensors, weights, density, 0.9, normalize))
        t = flat(base, tensors)
        for ratio in (0.1, 0.3):
            case(f"pcb-paper-{seed}-{ratio}", "pcb", {"variant": "paper", "ratio": ratio}, per_model, base, tensors, unflat(base, pcb_paper(t, weights, ratio)))
            case(f"pcb-script-{seed}-{ratio}", "pcb", {"variant": "script", "ratio": ratio}, per_model, base, tensors, unflat(base, pcb_script(t, weights, ratio)))
    with open(sys.argv[1], "w") as out:
        json.dump(cases, out)


if __name__ == "__main__":
    main()
