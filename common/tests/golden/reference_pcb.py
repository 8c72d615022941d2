"""PCB-Merging in NumPy: the paper (section 3) and the official scripts.

Everything is F64 over task vectors rounded to F32 (T = float32(model - base)); scores are rounded to F32 before they are ranked.
"""

import numpy as np


def flat(base, tensors):
    rows = [np.concatenate([(m[n] - base[n]).astype(np.float32).ravel() for n in sorted(base)]) for m in tensors]
    return np.array(rows, np.float64)


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


def pcb_script(t, weights, ratio, winsor=0.0001, inter="raw"):
    n, d = t.shape
    magnitude = np.abs(t)
    order = np.sort(magnitude, axis=1)
    low_index = min(d - 1, int(d * winsor))
    high_index = max(low_index, int(d * (1 - winsor) - 1))
    low, high = order[:, low_index : low_index + 1], order[:, high_index : high_index + 1]
    magnitude = np.clip(magnitude, low, high)
    clamped = np.sign(t) * magnitude
    scaled = np.divide(magnitude - low, high - low, out=np.zeros_like(magnitude), where=high > low)
    half = np.sign(t) * scaled
    between = {
        "raw": np.tanh(t * t.sum(0)),
        "half": np.tanh(t * half.sum(0)),
        "normalized": sum(np.tanh(half * other) for other in half),
    }[inter]
    score = (np.exp(n * scaled**2) * between).astype(np.float32).astype(np.float64)
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
    vision = pcb_script(t, [1, 1, 1], 0.3, 0.01, "half")
    assert np.allclose(vision[[4, 9, 13, 14]], [-0.0342983, -0.0345330, 0.0345029, 0.0376976], atol=1e-6), vision
    es = pcb_script(t, [1, 1, 1], 0.3, 0.01, "normalized")
    assert np.allclose(es[[4, 9, 13, 14]], [-0.0342053, -0.0343844, 0.0346947, 0.0377397], atol=1e-6), es


check_fixture()


# Clamped share, competition, default ratio and weight.
VARIANTS = {
    "script": (0.0001, "raw", 0.1, 1.0), "nlp": (0.01, "raw", 0.1, 1.0),
    "vision": (0.01, "half", 0.05, 1.2), "vision_es": (0.01, "normalized", 0.05, 1.0),
}


def pcb(p, base, tensors):
    """The whole model at once, unlike the methods that go by tensor; `layers` are the groups of the scope layer."""
    variant = p.shared("variant", "paper")
    winsor, inter, ratio, weight = VARIANTS.get(variant, (0, "", 0.1, 1.0))
    weights, ratio = p.each("weight", weight), p.shared("ratio", ratio)
    layer = lambda name: ".".join(name.split(".")[:2]) if name.startswith("h.") else ""
    group = {"global": lambda name: "", "tensor": lambda name: name, "layer": layer}[p.shared("scope", "global")]
    removed = {n for n in base if any(r["filter"] in n for r in p.tables.get("removed", []))}
    out = {n: base[n].astype(np.float64) for n in removed}
    for key in sorted({group(n) for n in base if n not in removed}):
        part = {n: b for n, b in base.items() if n not in removed and group(n) == key}
        t = flat(part, tensors)
        merged = pcb_paper(t, weights, ratio) if variant == "paper" else pcb_script(t, weights, ratio, winsor, inter)
        out |= unflat(part, merged)
    return {n: out[n] for n in base}


METHODS = {"pcb": pcb}
