"""The same scoring by transformers and PyTorch, for comparison; `benches/scoring.rs` runs this.

    python scoring.py QUICKSTART-FOLDER THREADS BATCH-TOKENS TEXTS ROUNDS

Scaled dot product attention, no gradients, batches sorted by length, tokens made beforehand, TEXTS texts of each domain. Prints the items and the seconds of each round.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

DOMAINS = ["tweets", "movies", "products", "editorials"]


def main():
    folder, (threads, batch_tokens, texts, rounds) = Path(sys.argv[1]), map(int, sys.argv[2:6])
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "experts" / "products", dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    rows = []
    for domain in DOMAINS:
        lines = (folder / "data" / f"{domain}.dev.jsonl").read_text(encoding="utf-8").splitlines()[:texts]
        rows += tokenizer([json.loads(line)["text"] for line in lines], truncation=True, max_length=128)["input_ids"]
    rows.sort(key=len, reverse=True)
    batches, room = [], 0
    for row in rows:
        # The longest text of a batch comes first, and padding makes all as long.
        if not batches or room < len(batches[-1][0]):
            batches.append([])
            room = batch_tokens
        batches[-1].append(row)
        room -= len(batches[-1][0])
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds):
            start = time.perf_counter()
            for batch in batches:
                tokens = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
                if tokens["attention_mask"].all():
                    # Without a mask PyTorch takes its faster kernel.
                    del tokens["attention_mask"]
                model(**tokens).logits.argmax(-1).tolist()
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"items": len(rows), "seconds": seconds}))


if __name__ == "__main__":
    main()
