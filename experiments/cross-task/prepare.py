"""Make two more tasks of the quickstart's texts: where a text comes from (four labels), and whether it has an opinion at all (two).

    python3 experiments/cross-task/prepare.py QUICKSTART OUT

Reads QUICKSTART/data/<domain>.<split>.jsonl and writes OUT/data/{origin,opinion,sentiment}.<split>.jsonl, each text on the side of the split where it was.
Sentiment is that of film reviews, opinions are those of products, and the origin is asked of all domains.
"""

import json
import sys
from pathlib import Path

DOMAINS = ["tweets", "movies", "products", "editorials"]


def rows(quickstart, domain, split):
    return [json.loads(line) for line in (quickstart / "data" / f"{domain}.{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def main():
    quickstart, out = Path(sys.argv[1]), Path(sys.argv[2]) / "data"
    out.mkdir(parents=True, exist_ok=True)
    for split in ["train", "dev", "test"]:
        every = {domain: rows(quickstart, domain, split) for domain in DOMAINS}
        least = min(map(len, every.values()))
        tasks = {
            "origin": [(row["text"], domain) for domain in DOMAINS for row in every[domain][:least]],
            "opinion": [(row["text"], "none" if row["label"] == "neutral" else "some") for row in every["products"]],
            "sentiment": [(row["text"], row["label"]) for row in every["movies"]],
        }
        for task, pairs in tasks.items():
            lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in pairs)
            (out / f"{task}.{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


main()
