"""Compares `evolver merge` with the official PCB-Merging programs on generated models, and prints the largest difference of each variant.

    common/tests/compare-install.sh FOLDER
    cargo build --release
    FOLDER/venv/bin/python common/tests/compare_pcb.py target/release/evolver FOLDER/pcb-merging [DIR]

The programs' functions are taken out of the checkout as they stand; what they import and load beside them is not needed. They compute in F32, evolver in F64. Models are
tensors of a small encoder; differences are as fine-tuning leaves them: heavy-tailed, larger in some tensors, a tenth of them zero, one tensor untouched. For each
variant the largest difference is given plain and in units of the root mean square of the task vectors (`scaled`), then the share of values that are not
equal, and how many are `apart` by more than 1 % of that unit.
"""

import ast
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

SHAPES = {"embeddings.weight": (4000, 96), "norm.weight": (96,)} | {
    f"layer.{layer}.{name}": shape
    for layer in range(12)
    for name, shape in {"attention.weight": (96, 96), "up.weight": (384, 96), "down.weight": (96, 384), "up.bias": (384,)}.items()
}


def functions(path, *names):
    """Some functions of a file, without running the rest of it."""
    tree = ast.parse(path.read_text())
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in {"normalize", "clamp", "act", *names}]
    space = {"torch": torch}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), space)
    return space


def script(checkout, checks, ratio):
    return functions(checkout / "pcb-merging.py", "PCB_merge")["PCB_merge"](checks, ratio)[0]


def nlp(checkout, checks, ratio):
    return functions(checkout / "nlp_source_code/utils/merge_utils.py", "task_para_att_merge")["task_para_att_merge"](checks, ratio)[0]


def vision_es(checkout, checks, ratio):
    clamped, scale = functions(checkout / "vision_source_code/pcb_ES.py", "PCB")["PCB"](checks, ratio)
    return (clamped * scale).sum(0) / torch.clamp(scale.sum(0), min=1e-12)


def vision(checkout, checks, ratio):
    """The program has no function: the statements of its main part, up to the merged task vector, with the ratio set."""
    path = checkout / "vision_source_code/pcb.py"
    space = functions(path) | {"tv_flat_checks": checks}
    main = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    for node in main.body:
        name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None
        if name == "att_ratio":
            space[name] = ratio
            continue
        if name == "lams":
            space[name] = torch.full((len(checks), 1), 1.2)
            continue
        exec(compile(ast.Module([node], []), str(path), "exec"), space)
        if name == "merged_tv":
            return space[name]


VARIANTS = {"script": script, "nlp": nlp, "vision": vision, "vision_es": vision_es}


def models(folder, count):
    torch.manual_seed(0)
    draw = torch.distributions.StudentT(4.0)
    base = {name: 0.05 * torch.randn(shape) for name, shape in SHAPES.items()}
    tables = [base]
    for _ in range(count):
        table = {}
        for index, (name, shape) in enumerate(SHAPES.items()):
            step = 1e-3 * (1 + index % 3) * draw.sample(shape) * (torch.rand(shape) < 0.9)
            table[name] = base[name] + (0 if name == "norm.weight" else step)
        tables.append(table)
    for number, table in enumerate(tables):
        path = folder / (f"expert-{number}" if number else "base")
        path.mkdir(parents=True)
        save_file(table, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text("{}")
    return tables


def main():
    evolver, checkout = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    root = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp())
    print(f"{'variant':<12} {'models':>6} {'ratio':>6} {'largest':>9} {'scaled':>9} {'unequal':>9} {'apart':>9}")
    for count in (3, 8):
        folder = root / str(count)
        tables = models(folder, count)
        flat = lambda table: torch.cat([table[name].reshape(-1) for name in sorted(table)])
        base = flat(tables[0])
        checks = torch.stack([flat(table) - base for table in tables[1:]])
        scale = checks.pow(2).mean().sqrt().item()
        for variant, official in VARIANTS.items():
            for ratio in (0.05, 0.1, 0.2):
                theirs = base + official(checkout, checks, ratio)
                config = {
                    "merge_method": "pcb", "base_model": str(folder / "base"), "dtype": "float32",
                    "models": [{"model": str(folder / f"expert-{number}")} for number in range(1, count + 1)],
                    "parameters": {"variant": variant, "ratio": ratio},
                }
                name = f"{count}-{variant}-{ratio}"
                (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
                subprocess.run([evolver, "merge", root / f"{name}.yaml", "--out", root / name], check=True, stderr=subprocess.DEVNULL)
                apart = (flat(load_file(root / name / "model.safetensors")) - theirs).abs()
                print(
                    f"{variant:<12} {count:>6} {ratio:>6} {apart.max():9.1e} {apart.max() / scale:9.1e} "
                    f"{(apart != 0).float().mean():9.5f} {int((apart > 0.01 * scale).sum()):9d}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
