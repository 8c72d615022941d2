"""Two experts of SmolLM2-135M, tuned on the quickstart's sentiment data (film reviews, tweets), and a search over them.

    cargo run --release -- quickstart --prepare-only --dir quickstart-run
    venv/bin/python tests/real/smollm2.py SMOLLM2 bfloat16
    venv/bin/python tests/real/tune_smollm2.py quickstart-run SMOLLM2 OUT
    cargo run --release -- run OUT/search.toml --dir OUT/search

Seeded; some minutes on two cores, since only the last layers are tuned. Each domain is scored by two tasks: the label that the model finds likeliest after
the text, and the perplexity of the texts themselves.
"""

import json
import random
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DOMAINS = ["movies", "tweets"]
LABELS = ["negative", "neutral", "positive"]
LAYERS, STEPS, BATCH, RATE = 8, 100, 8, 1e-4
PROMPT = "{}\nSentiment:"
SEARCH = """# Two experts of SmolLM2-135M: sentiment and language of film reviews and of tweets.
name = "smollm2"
[models]
base = "base"
experts = [{ name = "movies", path = "movies" }, { name = "tweets", path = "tweets" }]
[search]
in_flight = 2
[stop]
offspring = 12
"""
TASKS = """
[[tasks]]
name = "{domain}-sentiment"
evaluator = "multiple_choice"
dev = "{data}/{domain}.dev.jsonl"
test = "{data}/{domain}.test.jsonl"
labels = ["negative", "neutral", "positive"]
text = "{{{{ text }}}}\\nSentiment:"
choices = ""
dev_items = 100
test_items = 200
max_length = 96

[[tasks]]
name = "{domain}-language"
evaluator = "perplexity"
dev = "{data}/{domain}.dev.jsonl"
test = "{data}/{domain}.test.jsonl"
dev_items = 60
test_items = 120
max_length = 96
"""


def tune(folder, tokenizer, rows):
    """A model tuned on texts with their labels; each label as often as the others. Its last layers learn in F32."""
    torch.manual_seed(0)
    draw = random.Random(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    layers = model.model.layers[-LAYERS:]
    for parameter in layers.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=RATE)
    by_label = {label: [row["text"] for row in rows if row["label"] == label] for label in LABELS}
    for step in range(STEPS):
        chosen = [(draw.choice(by_label[label]), label) for label in draw.choices(LABELS, k=BATCH)]
        tokens = tokenizer([f"{PROMPT.format(text)} {label}" for text, label in chosen], padding=True, return_tensors="pt")
        ids = torch.cat([torch.full((BATCH, 1), tokenizer.bos_token_id), tokens.input_ids], 1)[:, :96]
        mask = torch.cat([torch.ones(BATCH, 1, dtype=torch.long), tokens.attention_mask], 1)[:, :96]
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model


def main():
    data, base, out = (Path(sys.argv[1]) / "data").resolve(), Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="right")
    dtype = AutoModelForCausalLM.from_pretrained(base, dtype="auto").dtype
    shutil.copytree(base, out / "base")
    for domain in DOMAINS:
        rows = [json.loads(line) for line in (data / f"{domain}.train.jsonl").read_text(encoding="utf-8").splitlines()]
        print(domain, flush=True)
        tune(base, tokenizer, rows).to(dtype).save_pretrained(out / domain)
        tokenizer.save_pretrained(out / domain)
    (out / "search.toml").write_text(SEARCH + "".join(TASKS.format(domain=domain, data=data) for domain in DOMAINS))


if __name__ == "__main__":
    main()
