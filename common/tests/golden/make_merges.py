"""Golden merges from an independent NumPy reference, one file a family, with models that several cases share.

    python3 common/tests/golden/make_merges.py     (needs numpy 2; writes beside itself)
"""

import json
from pathlib import Path

import numpy as np

import reference_measured
import reference_mergekit
import reference_pcb
import reference_recent

LAYERED = [("embed.weight", (5, 7)), ("h.0.attn.w", (3, 5)), ("h.0.mlp.w", (8, 6)), ("h.1.conv.w", (4, 3, 2)), ("h.2.mlp.w", (6, 8)), ("h.2.norm", (1,)), ("head.bias", (9,))]
DEPTHS = {"embed.weight": 0.0, "h.0.attn.w": 0.0, "h.0.mlp.w": 0.0, "h.1.conv.w": 0.5, "h.2.mlp.w": 1.0, "h.2.norm": 1.0, "head.bias": 0.0}


def near(seed, count, shapes, scale=1e-3, same=(), ties=False):
    """A base and `count` models near it; the models in `same` equal it. With `ties` differences are few exact multiples of 2^-10."""
    draw = np.random.default_rng(seed)
    if ties:
        base = {n: (draw.integers(-64, 65, s) / 1024).astype(np.float32) for n, s in shapes}
        step = lambda s: draw.integers(-2, 3, s) / 1024
    else:
        base = {n: draw.normal(0, 0.05, s).astype(np.float32) for n, s in shapes}
        step = lambda s: draw.normal(0, scale, s) * (draw.random(s) < 0.9)
    models = []
    for index in range(count):
        moved = {n: (base[n] + step(s)).astype(np.float32) for n, s in shapes}
        models.append(base if index in same else moved)
    return base, models


SETS = {
    "layered": near(1, 3, LAYERED),
    "far": near(2, 3, LAYERED, scale=0.05),
    "pair": near(3, 2, LAYERED, scale=0.02),
    "one": near(4, 1, LAYERED, scale=0.02),
    "long": near(5, 2, [("a.weight", (6, 5)), ("b.bias", (4097,))]),
    "long_one": near(5, 1, [("a.weight", (6, 5)), ("b.bias", (4097,))]),
    "element": near(6, 2, [("b.bias", (1,))]),
    "element_one": near(7, 1, [("b.bias", (1,))]),
    "zero": near(8, 2, LAYERED[:3], same=(1,)),
    "zero_one": near(8, 1, LAYERED[:3], same=(0,)),
    "ties": near(9, 3, LAYERED[:5], ties=True),
    "ties_pair": near(10, 2, LAYERED[:5], ties=True),
    "ties_one": near(11, 1, LAYERED[:5], ties=True),
}

# Statistics of the models of some sets: of each model a table for Fisher's and one for RegMean's.
def measured(seed, base, models):
    draw = np.random.default_rng(seed)
    fishers, grams = [], []
    for _ in models:
        # One tensor is missing, and half of the elements of another were never moved.
        fisher = {n: draw.exponential(1e-4, v.shape).astype(np.float32) for n, v in base.items() if n != "head.bias"}
        fisher["embed.weight"][:2] = 0
        gram = {}
        for n, v in base.items():
            if v.ndim != 2 or n == "embed.weight":
                continue
            side = v.shape[0] if "attn" in n else v.shape[1]
            rows = draw.normal(0, 1, (3 * side, side))
            rows[:, 1] = 0
            gram[n + ".transposed" * ("attn" in n)] = (rows.T @ rows / len(rows)).astype(np.float32)
        fishers.append(fisher)
        grams.append(gram)
    return {"fisher": fishers, "regmean": grams}


# Sets for methods of one model over the base, of two models, and of any number.
ONE = ["one", "long_one", "element_one", "zero_one", "ties_one"]
TWO = ["pair", "long", "element", "zero", "ties_pair"]
ANY = ["layered", "far", "long", "element", "zero", "ties", "one"]


class Parameters:
    """Parameters at one tensor; `depth` and filters as mergekit has them."""

    def __init__(self, shared, models, name, shape):
        self.tables, self.models, self.name, self.shape = shared, models, name, shape
        self.depth = DEPTHS.get(name, 0.0)

    def find(self, tables, key, default):
        for table in tables:
            value = table.get(key)
            if isinstance(value, list) and value and isinstance(value[0], dict):
                value = next((r["value"] for r in value if r.get("filter", "*") == "*" or r["filter"] in self.name), None)
            if isinstance(value, list):
                place = self.depth * (len(value) - 1)
                below = int(place)
                above = min(below + 1, len(value) - 1)
                value = (1 - (place - below)) * value[below] + (place - below) * value[above]
            if value is not None:
                return value
        return default

    def shared(self, key, default):
        return self.find([self.tables], key, default)

    def each(self, key, default):
        return [self.find([model, self.tables], key, default) for model in self.models]


WEIGHTS = [{"weight": 0.5}, {"weight": 0.75}, {"weight": 1.25}]
BY_LAYER = [{"weight": [0.2, 1.0, 0.6]}, {"weight": [{"filter": "mlp", "value": 0.3}]}, {}]
DENSITY = {"density": [{"filter": "attn", "value": 0.9}, {"filter": "mlp", "value": [0.3, 0.6]}, {"value": 0.45}]}

# Methods whose reference takes the whole model.
WHOLE_MODEL = {"pcb"} | reference_recent.GLOBAL

# (method, sets, parameters, parameters of each model, whether there is a base)
MERGEKIT = [
    ("linear", ANY, {}, WEIGHTS, True),
    ("linear", ["layered"], {"normalize": False, "weight": 0.4}, BY_LAYER, True),
    ("passthrough", ONE, {}, [{"scale": 0.5}], True),
    ("passthrough", ["one"], {}, [{"scale": [{"filter": "embed", "value": 2.0}, {"filter": "*", "value": [0.5, 1.5]}]}], True),
    ("slerp", ONE, {"t": 0.3}, [], True),
    ("slerp", ["one"], {"t": [{"filter": "attn", "value": [0.1, 0.9]}, {"filter": "mlp", "value": [1.0, 0.5, 0.2]}, {"value": 0.5}]}, [], True),
    ("nuslerp", TWO, {}, WEIGHTS, True),
    ("nuslerp", ["pair", "element"], {}, WEIGHTS, False),
    ("nuslerp", ["pair", "zero"], {"nuslerp_flatten": False}, WEIGHTS, True),
    ("nuslerp", ["pair", "long"], {"nuslerp_flatten": 0, "nuslerp_row_wise": 1}, BY_LAYER, False),
    ("multislerp", ["layered", "far", "long", "zero", "ties", "one"], {}, WEIGHTS, True),
    ("multislerp", ["far"], {"normalize_weights": False, "weight": 0.6}, BY_LAYER, False),
    ("karcher", ANY, {}, [], True),
    ("karcher", ["far"], {"max_iter": 2}, [], True),
    ("task_arithmetic", ANY, {"lambda": 0.4}, WEIGHTS, True),
    ("task_arithmetic", ["layered"], {"lambda": [0.1, 0.9], "normalize": [{"filter": "mlp", "value": True}]}, BY_LAYER, True),
    ("ties", ANY, {"density": 0.2, "lambda": 0.9}, WEIGHTS, True),
    ("ties", ["layered", "ties"], {"normalize": False, "rescale": True, **DENSITY}, BY_LAYER, True),
    ("ties", ["far"], {"density": 1.0}, [{"weight": -0.5}], True),
    ("ties", ["far"], {"density": 0.0}, [], True),
    ("breadcrumbs", ANY, {"density": 0.6, "gamma": 0.1}, WEIGHTS, True),
    ("breadcrumbs", ["layered", "ties"], {"rescale": True, "gamma": [0.0, 0.3], **DENSITY}, BY_LAYER, True),
    ("breadcrumbs_ties", ANY, {"density": 0.6, "gamma": 0.1}, WEIGHTS, True),
    ("breadcrumbs_ties", ["ties"], {"density": 0.9, "gamma": 0.5, "normalize": True}, BY_LAYER, True),
    ("dare_linear", ANY, {"density": 0.5, "seed": 7}, WEIGHTS, True),
    ("dare_linear", ["layered"], {"rescale_by": "density", **DENSITY}, BY_LAYER, True),
    ("dare_ties", ANY, {"density": 0.5}, WEIGHTS, True),
    ("dare_ties", ["far"], {"density": 0.7, "normalize": True, "rescale": False, "seed": 2**40}, BY_LAYER, True),
    ("della", ANY, {"density": 0.5}, WEIGHTS, True),
    ("della", ["far"], {"rescale_by": "density", "epsilon": [0.05, 0.2], **DENSITY | {"density": [{"filter": "attn", "value": 0.75}, {"value": 0.5}]}}, BY_LAYER, True),
    ("della_linear", ANY, {"density": 0.4, "epsilon": 0.1, "seed": 3}, WEIGHTS, True),
    ("model_stock", ["layered", "far", "long", "element", "zero", "ties"], {}, [], True),
    ("model_stock", ["far", "ties"], {"filter_wise": [{"filter": "attn", "value": False}, {"value": True}]}, [], True),
    ("nearswap", ONE, {"t": 0.004}, [], True),
    ("nearswap", ["one"], {"t": [{"filter": "mlp", "value": [0.001, 0.1]}]}, [], True),
    ("arcee_fusion", ONE, {}, [], True),
    ("sce", ANY, {}, [], True),
    ("sce", ["layered", "far", "long", "element", "zero", "ties"], {"select_topk": [0.2, 0.8]}, [], True),
    ("ram", ANY, {"epsilon": 5e-4}, [], True),
    ("ramplus_tl", ANY, {"epsilon": 5e-4, "r": 0.5, "alpha": [1.0, 3.0]}, [], True),
]
PCB = [
    ("pcb", ["layered", "long", "element", "zero", "ties", "one"], {"variant": variant, "ratio": ratio}, WEIGHTS, True)
    for variant, ratio in [("paper", 0.1), ("paper", 0.3), ("script", 0.1), ("script", 0.3), ("nlp", 0.2), ("vision", 0.2), ("vision_es", 0.2)]
] + [
    ("pcb", ["far", "ties"], {"variant": variant, "scope": scope, "removed": [{"filter": "mlp", "value": True}]}, [], True)
    for variant in ("paper", "vision", "vision_es")
    for scope in ("layer", "tensor")
]
MEASURED = [
    ("fisher", ["layered", "far", "pair", "one"], {}, WEIGHTS, False),
    ("fisher", ["layered"], {"smooth": 1e-5, "weight": [0.2, 1.0, 0.6]}, [], False),
    ("fisher", ["far", "pair"], {"fisher_normalize": "param"}, WEIGHTS, False),
    ("fisher", ["far"], {"fisher_normalize": "model"}, BY_LAYER, False),
    ("regmean", ["layered", "far", "pair", "one"], {}, [], False),
    ("regmean", ["layered", "far"], {"reduce_nondiag": [0.1, 0.9], "plain_mean": [{"filter": "h.0.mlp", "value": True}]}, WEIGHTS, False),
    ("regmean", ["far"], {"reduce_nondiag": 0.0}, BY_LAYER, False),
]
RECENT = [
    ("consensus", ANY, {"k": 2, "lambda": 0.7}, WEIGHTS, True),
    ("consensus", ["far"], {"k": 1, "tall_lambda": [0.2, 3.0]}, BY_LAYER, True),
    ("magmax", ANY, {"lambda": 0.8}, WEIGHTS, True),
    ("lines", ANY, {"alpha": 0.2, "beta": 0.6}, WEIGHTS, True),
    ("emr", ANY, {}, [], True),
    ("emr", ANY, {"task": 1, "lambda": 0.9}, [], True),
    ("localize_stitch", ANY, {"density": 0.3}, [], True),
    ("tsv", ["layered", "far", "pair", "zero", "one"], {}, WEIGHTS, True),
    ("tsv", ["far"], {"sv_reduction": 0.3, "matrices": [{"filter": "embed", "value": False}]}, BY_LAYER, True),
    ("iso_c", ["layered", "far", "pair", "zero", "one"], {"lambda": 0.9}, WEIGHTS, True),
    ("iso_cts", ["layered", "far", "pair", "one"], {}, WEIGHTS, True),
    ("iso_cts", ["far"], {"common_space_fraction": 0.4}, BY_LAYER, True),
    ("knots", ["layered", "far", "pair", "zero", "one"], {"density": 0.4}, WEIGHTS, True),
    ("wudi", ["layered", "far", "pair", "zero", "one"], {"iterations": 40, "learning_rate": 1e-4}, WEIGHTS, True),
]


def write(family, reference, cases, statistics=None):
    encode = lambda table: {n: {"shape": list(v.shape), "hex": np.asarray(v, np.float32).tobytes().hex()} for n, v in table.items()}
    done = []
    for number, (method, sets, shared, each, with_base) in enumerate(cases):
        for name in sets:
            base, models = SETS[name]
            each_here = [each[i] if i < len(each) else {} for i in range(len(models))]
            merge = reference[method]
            if statistics:
                tables = statistics[name][method]
                result = {
                    n: merge(Parameters(shared, each_here, n, base[n].shape), models, tables, n, shared) for n in base
                }
            elif method in WHOLE_MODEL:
                result = merge(Parameters(shared, each_here, "", ()), base, models)
            else:
                result = {
                    n: merge(Parameters(shared, each_here, n, base[n].shape), base[n] if with_base else None, [m[n] for m in models])
                    for n in base
                }
            assert all(np.isfinite(v).all() for v in result.values()), (method, name)
            done.append({
                "name": f"{method}-{number}-{name}", "method": method, "set": name, "with_base": with_base,
                "parameters": shared, "model_parameters": each_here, "expected": encode(result),
            } | ({"statistics": [encode(table) for table in statistics[name][method]]} if statistics else {}))
    used = {case["set"] for case in done}
    sets = {n: {"base": encode(b), "models": [encode(m) for m in ms]} for n, (b, ms) in SETS.items() if n in used}
    with open(Path(__file__).parent / f"{family}.json", "w") as out:
        json.dump({"sets": sets, "cases": done}, out)


if __name__ == "__main__":
    write("mergekit", reference_mergekit.METHODS, MERGEKIT)
    write("recent", reference_recent.METHODS, RECENT)
    write("pcb", reference_pcb.METHODS, PCB)
    names = {name for _, sets, *_ in MEASURED for name in sets}
    write("measured", reference_measured.METHODS, MEASURED, {n: measured(i, *SETS[n]) for i, n in enumerate(sorted(names))})
