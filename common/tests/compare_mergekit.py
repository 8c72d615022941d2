"""Compares `evolver merge` with the real mergekit on generated models, and prints the largest difference of each method.

    common/tests/compare-install.sh FOLDER
    cargo build --release
    FOLDER/venv/bin/python common/tests/compare_mergekit.py target/release/evolver [DIR]

The models are Llamas of 2 layers with weights and differences of the size that fine-tuning leaves. mergekit computes in the type that it merges as, evolver in F64.
For each method the largest difference is given plain and in units of the largest root mean square of a tensor's task vector (`scaled`), then the share
of values that are not equal, and how many are `apart` by more than 1 % of that unit. Where a method drops at random the two draw different numbers: the
ratio of the root mean squares of both merged task vectors is printed instead.

The tables whose `merged as` is float64 tell the reasons apart: mergekit computes them in F64, and its selections are patched to keep all that tie at a threshold. What
is apart in the tables before and not in these is due to rounding or to ties, and to nothing else.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import transformers
import yaml
from mergekit import sparsify
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import sce
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

WEIGHTS = [0.5, 0.3, 0.4]
RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}

# (method, number of models, whether the base is given, parameters, parameters of each model)
CASES = [
    ("linear", 3, False, {}, "weight"),
    ("task_arithmetic", 3, True, {"lambda": 0.7}, "weight"),
    ("task_arithmetic", 3, True, {"weight": [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.4}]}, None),
    ("slerp", 1, True, {"t": [{"filter": "self_attn", "value": [0, 0.7]}, {"value": 0.4}]}, None),
    ("nuslerp", 2, False, {}, "weight"),
    ("nuslerp", 2, True, {}, "weight"),
    ("nuslerp", 2, True, {"nuslerp_flatten": False}, "weight"),
    ("nuslerp", 2, True, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, "weight"),
    ("multislerp", 3, True, {}, "weight"),
    ("multislerp", 3, False, {}, "weight"),
    ("karcher", 3, False, {}, None),
    ("ties", 3, True, {"density": 0.3}, "weight"),
    ("ties", 3, True, {"density": 0.3, "normalize": False, "rescale": True}, "weight"),
    ("breadcrumbs", 3, True, {"density": 0.6, "gamma": 0.02}, "weight"),
    ("breadcrumbs_ties", 3, True, {"density": 0.6, "gamma": 0.02}, "weight"),
    ("dare_linear", 3, True, {"density": 0.5}, "weight"),
    ("dare_ties", 3, True, {"density": 0.5}, "weight"),
    ("della", 3, True, {"density": 0.5, "epsilon": 0.2}, "weight"),
    ("della_linear", 3, True, {"density": 0.5, "epsilon": 0.2}, "weight"),
    ("model_stock", 3, True, {}, None),
    ("model_stock", 3, True, {"filter_wise": True}, None),
    ("nearswap", 1, True, {"t": 0.0005}, None),
    ("arcee_fusion", 1, True, {}, None),
    ("sce", 3, True, {"select_topk": 0.4}, None),
    ("ram", 3, True, {"epsilon": 5e-4}, None),
    ("ramplus_tl", 3, True, {"epsilon": 5e-4}, None),
    ("passthrough", 1, False, {"scale": 0.5}, None),
]


TIES = "of magnitudes that tie at a threshold mergekit keeps as many as fit, evolver all: differences of BF16 models tie often"
# Why a method differs by more than rounding, as far as it does while mergekit computes in F32.
REASONS = {
    "ties": TIES,
    "breadcrumbs": TIES,
    "breadcrumbs_ties": TIES,
    "sce": TIES + "; variances are F32 there",
    "arcee_fusion": "divergences of nearly equal lines are below what F32 resolves; F64 here",
    "karcher": "angles are F32 there, and its tolerance ends the iterations earlier",
}
BF16 = "mergekit computes in BF16"


def ranked(values, ranks):
    """Of the sorted values, those of these ranks, or None where there are none of them."""
    ordered = values.reshape(-1).sort().values
    return (ordered[ranks[0]], ordered[ranks[-1]]) if len(ranks) else None


def banded(tensor, keys, ranks, rescale):
    """mergekit's masks by rank, with all that ties with a rank that is kept."""
    bounds = ranked(keys, ranks)
    mask = torch.zeros_like(tensor) if bounds is None else ((keys >= bounds[0]) & (keys <= bounds[1])).to(tensor.dtype)
    return sparsify.rescaled_masked_tensor(tensor, mask, rescale)


def magnitude(tensor, density, rescale_norm=None):
    count = tensor.numel()
    kept = max(1, int(density * count))
    return tensor if density >= 1 else banded(tensor, tensor.abs().float(), range(count - kept, count), rescale_norm)


def magnitude_outliers(tensor, density, rescale_norm=None, gamma=0.01):
    count = tensor.numel()
    kept, top = int(density * count), int(gamma * count)
    bottom = max(0, count - kept - top)
    return tensor if density >= 1 else banded(tensor, tensor.abs().float(), range(bottom, bottom + kept), rescale_norm)


def sce_mask(vectors, density, mask_dtype=None):
    variance = torch.var(vectors, dim=0, unbiased=False).float()
    kept = int(torch.count_nonzero(variance) * density)
    return banded(torch.ones_like(variance), variance, range(variance.numel() - kept, variance.numel()), None).to(mask_dtype)


@contextlib.contextmanager
def keeping_ties(wanted):
    with contextlib.ExitStack() as stack:
        for place, name, function in (
            (sparsify, "magnitude", magnitude), (sparsify, "magnitude_outliers", magnitude_outliers), (sce, "sce_mask", sce_mask),
        ):
            if wanted:
                stack.enter_context(mock.patch.object(place, name, function))
        yield


def models(folder, dtype):
    """A base and three models near it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=False, dtype=str(dtype).removeprefix("torch."),
    )
    base = transformers.LlamaForCausalLM(config).state_dict()
    for name in ("base", "a", "b", "c"):
        path = folder / name
        path.mkdir(parents=True)
        config.save_pretrained(path)
        step = lambda t: t + (0 if name == "base" else 1e-3) * torch.randn(t.shape) * (torch.rand(t.shape) < 0.95)
        save_file({n: step(t.float()).to(dtype).contiguous() for n, t in base.items()}, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}))


def weights(path):
    return {n: t for file in sorted(Path(path).glob("*.safetensors")) for n, t in load_file(file).items()}


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])


def main():
    evolver = Path(sys.argv[1]).resolve()
    root = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    tables = [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float64"), ("bfloat16", "float64")]
    for dtype, computed in tables:
        folder = root / f"{dtype}-{computed}"
        models(folder, getattr(torch, dtype))
        base = {n: t.float() for n, t in weights(folder / "base").items()}
        scale = max(((t.float() - base[n]) ** 2).mean().sqrt().item() for n, t in weights(folder / "a").items())
        print(f"\nsaved as {dtype}, merged as {computed}\n{'method':<64} {'largest':>9} {'scaled':>9} {'unequal':>9} {'apart':>9}")
        for number, (method, count, with_base, parameters, each) in enumerate(CASES):
            entries = [{"model": str(folder / name)} for name in "abc"[:count]]
            if each:
                for entry, weight in zip(entries, WEIGHTS):
                    entry["parameters"] = {each: weight}
            if method in ("slerp", "nearswap", "arcee_fusion"):
                entries.insert(0, {"model": str(folder / "base")})
            config = {"merge_method": method, "models": entries, "parameters": parameters, "dtype": computed}
            if with_base:
                config["base_model"] = str(folder / "base")
            file = folder / f"{number}.yaml"
            file.write_text(yaml.safe_dump(config))
            label = f"{method} {json.dumps(parameters)}{'' if with_base else ', no base'}"
            try:
                theirs, ours = folder / f"{number}-mergekit", folder / f"{number}-evolver"
                options = MergeOptions(copy_tokenizer=False, quiet=True, random_seed=0)
                with keeping_ties(computed == "float64"):
                    run_merge(MergeConfiguration.model_validate(config), str(theirs), options)
                run([evolver, "merge", file, "--out", ours])
            except Exception as error:  # What either refuses is part of the comparison.
                print(f"{label:<64} {type(error).__name__}: {error}", flush=True)
                continue
            theirs, ours = weights(theirs), weights(ours)
            assert theirs.keys() == ours.keys(), (theirs.keys() ^ ours.keys())
            if method in RANDOM:
                size = lambda table: sum(((t.float() - base[n]) ** 2).sum().item() for n, t in table.items()) ** 0.5
                print(f"{label:<64} size of the merged task vector: {size(ours) / size(theirs):.4f} of mergekit's")
                continue
            largest = max((ours[n].double() - theirs[n].double()).abs().max().item() for n in ours)
            unequal = sum((ours[n] != theirs[n]).sum().item() for n in ours) / sum(t.numel() for t in ours.values())
            apart = sum(((ours[n].double() - theirs[n].double()).abs() > 0.01 * scale).sum().item() for n in ours)
            reason = "; ".join([BF16] * (computed == "bfloat16") + [REASONS[method]] * (method in REASONS)) if apart else ""
            print(f"{label:<64} {largest:9.1e} {largest / scale:9.1e} {unequal:9.5f} {apart:9d}  {reason}", flush=True)
    if len(sys.argv) <= 2:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
