"""Times merges by mergekit and by the official PCB-Merging script beside ours, alternately in one run, and prints the ratios.

    common/tests/compare-install.sh FOLDER
    cargo bench -p evolver-common --bench merge --no-run          # prints the path of the bench program
    FOLDER/venv/bin/python benches/merge.py mergekit BENCH [METHOD...]   # base and 3 models of 270 M BF16, 2 threads
    FOLDER/venv/bin/python benches/merge.py pcb BENCH FOLDER/pcb-merging

mergekit's time is that of `run_merge` with its files in the page cache, without start-up, tokenizer copy and sync; ours that of the statistics and the streamed
merge, into a file as well. The least of the rounds (EVOLVER_BENCH_ROUNDS, 2) counts. Models are kept in EVOLVER_BENCH_DIR.

The official script needs 52 bytes for each element and task, so it is run over 8 x 13.75 M and its time multiplied by 8 for 8 x 110 M, where its sort alone costs more.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = int(os.environ.get("EVOLVER_BENCH_ROUNDS", 2))
ROOT = Path(os.environ.get("EVOLVER_BENCH_DIR", Path(tempfile.gettempdir()) / "evolver-bench"))

# Of each method: number of models (None: all), parameters.
METHODS = {
    "linear": (None, {"weight": 0.4}),
    "passthrough": (1, {}),
    "slerp": (1, {"t": 0.5}),
    "nuslerp": (2, {"weight": 0.4}),
    "multislerp": (None, {"weight": 0.4}),
    "karcher": (None, {}),
    "task_arithmetic": (None, {"weight": 0.4}),
    "ties": (None, {"weight": 0.4, "density": 0.2}),
    "dare_linear": (None, {"weight": 0.4, "density": 0.2}),
    "dare_ties": (None, {"weight": 0.4, "density": 0.2}),
    "breadcrumbs": (None, {"weight": 0.4, "density": 0.9}),
    "breadcrumbs_ties": (None, {"weight": 0.4, "density": 0.9}),
    "della_linear": (None, {"weight": 0.4, "density": 0.2, "epsilon": 0.1}),
    "della": (None, {"weight": 0.4, "density": 0.2, "epsilon": 0.1}),
    "model_stock": (None, {}),
    "nearswap": (1, {"t": 1e-4}),
    "arcee_fusion": (1, {}),
    "sce": (None, {"select_topk": 0.2}),
    "ram": (None, {}),
    "ramplus_tl": (None, {}),
}
WITHOUT_BASE = {"linear", "passthrough", "karcher"}


def ours(bench, *words):
    done = subprocess.run([bench, *words], capture_output=True, text=True, check=True)
    seconds, private = done.stdout.strip().splitlines()[-1].split()
    return float(seconds), float(private)


def against_mergekit(bench, wanted):
    import torch
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(2)
    # The bench makes the models.
    subprocess.run([bench, "all", "--only", "passthrough"], check=True, env=os.environ | {"EVOLVER_BENCH_ROUNDS": "1", "EVOLVER_BENCH_DIR": str(ROOT)})
    folder = ROOT / "270-BF16-drawn"
    models = [folder / name for name in ("base", "expert-1", "expert-2", "expert-3")]
    print(f"{'method':<18} {'mergekit s':>10} {'ours s':>8} {'ratio':>7} {'private MB':>11}")
    for method in wanted or METHODS:
        count, parameters = METHODS[method]
        chosen = models[1:][:count]
        config = {"merge_method": method, "models": [{"model": str(path)} for path in chosen], "parameters": parameters, "dtype": "bfloat16"}
        if method not in WITHOUT_BASE:
            config["base_model"] = str(models[0])
        if method in ("slerp", "nearswap", "arcee_fusion"):
            config["models"].insert(0, {"model": str(models[0])})
        theirs, own, private = [], [], 0.0
        for _ in range(ROUNDS):
            out = ROOT / "mergekit-out"
            shutil.rmtree(out, ignore_errors=True)
            started = time.perf_counter()
            run_merge(MergeConfiguration.model_validate(config), str(out), MergeOptions(copy_tokenizer=False, lazy_unpickle=True, quiet=True))
            theirs.append(time.perf_counter() - started)
            shutil.rmtree(out, ignore_errors=True)
            seconds, peak = ours(bench, "once", method, *map(str, models))
            own.append(seconds)
            private = max(private, peak)
        print(f"{method:<18} {min(theirs):10.2f} {min(own):8.3f} {min(theirs) / min(own):7.1f} {private:11.0f}", flush=True)


def against_pcb(bench, checkout):
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "common/tests"))
    from compare_pcb import functions

    torch.set_num_threads(2)
    torch.manual_seed(0)
    merge = functions(Path(checkout) / "pcb-merging.py", "PCB_merge")["PCB_merge"]
    checks = 1e-3 * torch.randn(8, 13_750_000)
    theirs = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        merge(checks, 0.1)
        theirs.append(time.perf_counter() - started)
    del checks
    print(f"official script, 8 x 13.75 M: {min(theirs):.1f} s; extrapolated to 8 x 110 M: {8 * min(theirs):.0f} s", flush=True)
    done = subprocess.run([bench, "pcb"], check=True, capture_output=True, text=True, env=os.environ | {"EVOLVER_BENCH_DIR": str(ROOT)})
    print(done.stdout)
    for line in done.stdout.splitlines():
        if line.startswith("pcb "):
            variant, seconds = line.split()[1], float(line.split(":")[1].split()[0])
            print(f"pcb {variant:<10} {8 * min(theirs) / seconds:.0f} times the official script's speed")


if __name__ == "__main__":
    ROOT.mkdir(parents=True, exist_ok=True)
    mode, bench, *rest = sys.argv[1:]
    against_mergekit(bench, rest) if mode == "mergekit" else against_pcb(bench, rest[0])
