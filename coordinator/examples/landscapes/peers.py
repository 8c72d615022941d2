"""The official Evolver's algorithm, and CMA-ES by the `cmaes` package, on the landscapes that the example wrote.

Written from the published algorithm; it shares no code with the Rust program. Needs numpy, scipy and cmaes.

    python3 peers.py FOLDER
"""

import json
import pathlib
import sys

import numpy as np
from cmaes import CMA
from scipy.stats import norm

GENERATIONS = 15


class Landscape:
    def __init__(self, path):
        data = json.loads(path.read_text())
        self.function = data["function"]
        self.experts = np.float32(data["experts"])
        self.optima = np.array(data["optima"])
        self.scale = np.array(data["scale"])
        self.waves = np.array(data["waves"])
        self.used = np.array(data["used"])
        self.phases = np.array(data["phases"])

    def height(self, weights, task):
        x = weights - self.optima[task]
        n = len(x)
        place = np.arange(n) / (n - 1)
        if self.function == "sphere":
            return (x**2).sum()
        if self.function == "ellipsoid":
            return (100**place * x**2).sum()
        if self.function == "rastrigin":
            return (x**2 + 0.3 * (1 - np.cos(2 * np.pi * x))).sum()
        if self.function == "ridge":
            along = (x * np.where(np.arange(n) % 2 == 0, 1, -1)).sum() / np.sqrt(n)
            return along**2 + 4 * np.sqrt(max((x**2).sum() - along**2, 0))
        return (np.abs(x) ** (1.5 + 2 * place)).sum()

    def quality(self, weights):
        heights = np.array([self.height(weights, task) for task in range(len(self.scale))])
        return 1 / 3 + 0.6 * np.exp(-heights / self.scale)

    def truth(self, weights):
        return float(self.quality(np.float64(weights)).mean())

    def dev(self, weights):
        """Right or wrong of every item: tasks by items."""
        along = self.waves @ np.float64(weights)
        fields = np.cos(along[self.used] + self.phases).sum(axis=2) * np.sqrt(2 / self.used.shape[2])
        return fields < norm.ppf(self.quality(np.float64(weights)))[:, None]

    def score(self, weights):
        return float(self.dev(weights).mean(axis=1).mean())


def official(landscape, seed, f=0.5, cr=0.5):
    """The official code's loop without a merger: interpolation towards a scheduled reference, strict improvement after rounding to 5 decimals."""
    random = np.random.default_rng(seed)
    population = [expert.copy() for expert in landscape.experts]
    score = [round(landscape.score(weights), 5) for weights in population]
    count = len(population)
    items = landscape.used.shape[0] * landscape.used.shape[1]
    for generation in range(GENERATIONS):
        for i in range(count):
            others = [j for j in range(count) if j != i]
            if random.random() < 0.5 / (GENERATIONS - generation) + 0.5:
                reference = random.choice(others)
            else:
                reference = max(others, key=lambda j: score[j])
            mutant = (1 - f) * population[i] + f * population[reference]
            trial = np.where(random.random(len(mutant)) < cr, mutant, population[i]).astype(np.float32)
            found = round(landscape.score(trial), 5)
            if found > score[i]:
                population[i], score[i] = trial, found
    best = int(np.argmax(score))
    spent = items * (count + GENERATIONS * count)
    return {"truth": landscape.truth(population[best]), "dev": score[best], "items": spent}


def cma(landscape, seed, budget):
    """Task arithmetic's coefficients, one per model, in [0, 1.5], from 0.35, with the package's defaults and step 0.2 of the range."""
    count = len(landscape.experts)
    items = landscape.used.shape[0] * landscape.used.shape[1]
    optimizer = CMA(mean=np.full(count, 0.35), sigma=0.3, bounds=np.array([[0.0, 1.5]] * count), seed=seed)
    spent = items * count
    best = max((landscape.score(weights), index) for index, weights in enumerate(landscape.experts))
    best = (best[0], landscape.experts[best[1]])
    while spent + items <= budget:
        told = []
        for _ in range(optimizer.population_size):
            point = optimizer.ask()
            weights = (point @ landscape.experts).astype(np.float32)
            value = landscape.score(weights)
            spent += items
            if value > best[0]:
                best = (value, weights)
            told.append((point, -value))
            if spent + items > budget:
                break
        if len(told) == optimizer.population_size:
            optimizer.tell(told)
    return {"truth": landscape.truth(best[1]), "dev": best[0], "items": spent}


def main():
    folder = pathlib.Path(sys.argv[1])
    results = []
    for path in sorted(folder.glob("*-*.json")):
        function, seed = path.stem.rsplit("-", 1)
        landscape = Landscape(path)
        found = official(landscape, int(seed))
        results.append({"way": ["official Evolver (Python)", "greedy"], "instance": [function, int(seed)], **found})
        found = cma(landscape, int(seed), found["items"])
        results.append({"way": ["CMA-ES by cmaes (Python)", "none"], "instance": [function, int(seed)], **found})
        # What the Rust program says of the experts must be what this one says.
        results[-1]["experts"] = [landscape.truth(weights) for weights in landscape.experts]
        results[-1]["scores"] = [landscape.score(weights) for weights in landscape.experts]
    (folder / "python.json").write_text(json.dumps(results))


main()
