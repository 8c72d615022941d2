"""The table of docs/search.md from the results of the example and of peers.py.

    python3 table.py FOLDER

Columns: mean true objective of the final model over landscapes and seeds in points, with a 95 % interval of the difference to the official algorithm on the same
instances; the same by function; and the share of the official algorithm's items after which the best stood truly as high as the official algorithm's end,
the median over instances on which it ever did.
"""

import json
import pathlib
import sys

import numpy as np

folder = pathlib.Path(sys.argv[1])
results = json.loads((folder / "rust.json").read_text()) + json.loads((folder / "python.json").read_text())
ways = {}
for result in results:
    ways.setdefault(tuple(result["way"]), {})[tuple(result["instance"])] = result


def median_share(shares):
    median = np.median(shares)
    return f"{median:.2f} ({np.isfinite(shares).mean():.0%})" if np.isfinite(median) else f"never ({np.isfinite(shares).mean():.0%})"


official = ways[("official Evolver (Python)", "greedy")]
functions = sorted({function for function, _ in official})
rows = []
for way, found in ways.items():
    difference = np.array([100 * (found[key]["truth"] - official[key]["truth"]) for key in official])
    by_function = [100 * np.mean([found[key]["truth"] for key in official if key[0] == function]) for function in functions]
    luck = np.mean([100 * (found[key]["dev"] - found[key]["truth"]) for key in official])
    shares = [[], []]
    for key, target in official.items():
        for column, name in enumerate(["dev", "truth"]):
            reached = [point[0] for point in found[key].get("course", []) if point[2 - column] >= target[name]]
            shares[column].append(min(reached) / target["items"] if reached else np.inf)
    rows.append((np.mean(by_function), way, difference, by_function, luck, shares))
print("| strategy | rule | true objective | against official | " + " | ".join(functions) + " | dev above truth | items to official's dev | items to official's truth |")
print("|---|---|---|---|" + "---|" * len(functions) + "---|---|---|")
for mean, way, difference, by_function, luck, shares in sorted(rows, key=lambda row: -row[0]):
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    columns = " | ".join(f"{value:.1f}" for value in by_function)
    share = " | ".join("–" if "Python" in way[0] else median_share(column) for column in shares)
    strategy, rule = (" ".join([text.split(" ", 1)[0], *(f"`{rest}`" for rest in text.split(" ", 1)[1:])]) if "Python" not in text else text for text in way)
    print(f"| {strategy} | {rule} | {mean:.2f} | {difference.mean():+.2f} ± {half:.2f} | {columns} | {luck:+.1f} | {share} |")
