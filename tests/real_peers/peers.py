"""The official Evolver's algorithm, and CMA-ES by the `cmaes` package, on the quickstart's real task.

Written from the published algorithm, scored by transformers and PyTorch on the same items as `evolver` scores with `dev_items = 150` and
`test_items = 300`; it shares no code with the Rust program. QUICKSTART is the folder of `evolver quickstart`; models named `merge-...` beside its experts
join the start population, as they do in `peers.toml`:

    for name in simple-average task-arithmetic ties pcb; do
        evolver export QUICKSTART/search $name --out QUICKSTART/experts/merge-$name
    done
    python3 tests/real_peers/peers.py QUICKSTART official 0 OUT      # the experts alone, as in the paper
    python3 tests/real_peers/peers.py QUICKSTART official-all 0 OUT  # with the merges
    python3 tests/real_peers/peers.py QUICKSTART cma 0 OUT

Each spends 36,000 dev items and writes OUT/<way>-<seed>.json: the best's dev score after each evaluation, and the final best's sealed score.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from blake3 import blake3
from cmaes import CMA
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TASKS = ["tweets", "movies", "products", "editorials"]
BUDGET = 36_000
MAX_LENGTH = 128


def key(text):
    """What a row is known by: the choice of items does not depend on their order."""
    hasher = blake3()
    for part in (b"evolver item v1", text.encode(), b""):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def rows(path, count):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    chosen = sorted(range(len(found)), key=lambda place: (key(found[place]["text"]), place))[:count]
    return [found[place] for place in sorted(chosen)]


class Task:
    """The model, the items, and weights as one vector: what is not frozen in the quickstart's definition."""

    def __init__(self, folder):
        base = folder / "base"
        self.model = AutoModelForSequenceClassification.from_pretrained(folder / "experts" / TASKS[0]).eval()
        tokenizer = AutoTokenizer.from_pretrained(base)
        labels = self.model.config.label2id
        self.batches = {}
        for split, count in [("dev", 150), ("test", 300)]:
            items = [(task, row) for task in range(len(TASKS)) for row in rows(folder / "data" / f"{TASKS[task]}.{split}.jsonl", count)]
            texts = [tokenizer(row["text"], truncation=True, max_length=MAX_LENGTH)["input_ids"] for _, row in items]
            order = sorted(range(len(items)), key=lambda item: len(texts[item]))
            self.batches[split] = [
                (
                    tokenizer.pad({"input_ids": [texts[item] for item in part]}, return_tensors="pt"),
                    [items[item][0] for item in part],
                    torch.tensor([labels[items[item][1]["label"]] for item in part]),
                )
                for part in (order[start : start + 32] for start in range(0, len(order), 32))
            ]
        frozen = ("bert.embeddings.", "bert.pooler.")
        self.names = [name for name, _ in self.model.named_parameters() if not name.startswith(frozen)]
        self.base = self.vector(base)
        self.items = sum(len(tasks) for _, tasks, _ in self.batches["dev"])

    def vector(self, folder):
        """A model's weights; the base's head, which it does not have, is zeros."""
        tensors = load_file(folder / "model.safetensors")
        tensors = {name if name.startswith(("bert.", "classifier.")) else f"bert.{name}": tensor for name, tensor in tensors.items()}
        wanted = dict(self.model.named_parameters())
        return torch.cat([tensors.get(name, torch.zeros_like(wanted[name])).float().flatten() for name in self.names]).numpy()

    @torch.inference_mode()
    def score(self, weights, split="dev"):
        """The mean over the tasks of the share of right items."""
        start, parameters = 0, dict(self.model.named_parameters())
        for name in self.names:
            count = parameters[name].numel()
            parameters[name].copy_(torch.from_numpy(weights[start : start + count]).view_as(parameters[name]))
            start += count
        right, count = np.zeros(len(TASKS)), np.zeros(len(TASKS))
        for batch, tasks, labels in self.batches[split]:
            hits = (self.model(**batch).logits.argmax(dim=1) == labels).numpy()
            np.add.at(right, tasks, hits)
            np.add.at(count, tasks, 1)
        return float((right / count).mean())


class Spent:
    """The items that were scored, and the best dev score so far."""

    def __init__(self, task):
        self.task, self.items, self.best, self.course, self.weights = task, 0, -1.0, [], None

    def left(self):
        return self.items + self.task.items <= BUDGET

    def score(self, weights):
        value = self.task.score(weights)
        self.items += self.task.items
        if value > self.best:
            self.best, self.weights = value, weights.copy()
        self.course.append([self.items, self.best])
        return value


def official(spent, models, seed, f=0.5, cr=0.5):
    """The official code's loop without a merger: interpolation towards a scheduled reference, strict improvement after rounding to 5 decimals."""
    random = np.random.default_rng(seed)
    population = [model.copy() for model in models]
    score = [round(spent.score(weights), 5) for weights in population]
    count = len(population)
    generations = (BUDGET // spent.task.items - count) // count
    for generation in range(generations):
        for i in range(count):
            others = [j for j in range(count) if j != i]
            if random.random() < 0.5 / (generations - generation) + 0.5:
                reference = random.choice(others)
            else:
                reference = max(others, key=lambda j: score[j])
            mutant = (1 - f) * population[i] + f * population[reference]
            trial = np.where(random.random(len(mutant)) < cr, mutant, population[i]).astype(np.float32)
            found = round(spent.score(trial), 5)
            if found > score[i]:
                population[i], score[i] = trial, found


def cma(spent, base, models, seed):
    """Task arithmetic's coefficients, one per expert, in [0, 1.5], from 0.35, with the package's defaults and step 0.2 of the range."""
    count = len(models)
    vectors = [model - base for model in models]
    optimizer = CMA(mean=np.full(count, 0.35), sigma=0.3, bounds=np.array([[0.0, 1.5]] * count), seed=seed)
    for model in models:
        spent.score(model)
    while spent.left():
        told = []
        while len(told) < optimizer.population_size and spent.left():
            point = optimizer.ask()
            weights = base + sum(np.float32(weight) * vector for weight, vector in zip(point, vectors))
            told.append((point, -spent.score(weights)))
        if len(told) == optimizer.population_size:
            optimizer.tell(told)


def main():
    folder, way, seed, out = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), pathlib.Path(sys.argv[4])
    torch.set_num_threads(1)
    task = Task(folder)
    experts = [task.vector(folder / "experts" / name) for name in TASKS]
    merges = [task.vector(path) for path in sorted((folder / "experts").glob("merge-*"))]
    spent = Spent(task)
    if way == "cma":
        cma(spent, task.base, experts, seed)
    else:
        official(spent, experts + merges if way == "official-all" else experts, seed)
    result = {"dev": spent.best, "test": task.score(spent.weights, "test"), "items": spent.items, "course": spent.course}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{way}-{seed}.json").write_text(json.dumps(result))


main()
