"""Golden logits: what transformers and PyTorch say of real texts, in F32.

    cargo run --release -- quickstart --prepare-only --dir quickstart-run
    python3 -m venv venv && venv/bin/pip install -r quickstart/requirements.txt
    venv/bin/python tests/golden/make_logits.py quickstart-run tests/golden/logits.json

The model is DIR/experts/products, the base with one of the LoRA adapters in quickstart/experts expanded over it. Each text is run alone, so that
no padding or mask takes part. The groups differ in max_length, so that truncation is met; text pairs, an empty text and emoji are among them.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

DOMAINS = ["tweets", "movies", "products", "editorials"]
ODD = [
    "",
    " ",
    "\t\n",
    "😀",
    "I 💔 this 👩‍👩‍👧‍👦 so much 🎉🎉🎉 :-)",
    "Ça c'est naïve — “quoted”… ﬁne ½ ①",
    "中文 и русский نص عربي हिन्दी",
    "e\u0301 vs \u00e9, zero\u200bwidth, nul\u0000byte, \ufffd",
    "[CLS] a text that names [SEP] special [MASK] tokens [PAD] [UNK]",
    "x" * 300,
    "supercalifragilisticexpialidocious " * 60,
    "!?" * 200,
    "http://example.org/?a=1&b=2#c @user #tag $5.00 50% 1,000,000",
]


def texts(directory, domain):
    """The texts of a domain's sealed split."""
    lines = (directory / "data" / f"{domain}.test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def groups(directory):
    """Items by max_length: 36 texts of each domain, the longest among them; the odd ones; pairs; and short limits."""
    plain, cut, pairs = [], [], []
    for domain in DOMAINS:
        found = texts(directory, domain)
        found.sort(key=len)
        step = len(found) / 36
        plain += [{"text": found[int((number + 1) * step) - 1]} for number in range(36)]
        cut += [{"text": text} for text in found[-4:]]
        pairs += [{"text": first, "pair": second} for first, second in zip(found[-3:], found[:3])]
        pairs += [{"text": found[7], "pair": found[-1]}, {"text": found[-1], "pair": found[-2]}]
    odd = [{"text": text} for text in ODD]
    pairs += [{"text": "", "pair": ""}, {"text": "a", "pair": ""}, {"text": "", "pair": "b 😀"}]
    return [(512, plain), (128, odd), (24, cut + pairs[:8]), (64, pairs), (5, odd[:8])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="folder made by `evolver quickstart --prepare-only`")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.directory / "experts" / "products"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    result = []
    for max_length, items in groups(arguments.directory):
        items = [dict(item) for item in items]
        for item in items:
            texts = [[item["text"]], [item["pair"]]] if "pair" in item else [[item["text"]]]
            tokens = tokenizer(*texts, truncation="longest_first", max_length=max_length, return_tensors="pt")
            with torch.no_grad():
                logits = model(**tokens).logits[0]
            item["ids"] = tokens["input_ids"][0].tolist()
            item["types"] = "".join(str(kind) for kind in tokens["token_type_ids"][0].tolist())
            item["logits"] = [round(logit, 7) for logit in logits.tolist()]
        result.append({"max_length": max_length, "items": items})
    lines = ",\n".join(json.dumps(group, ensure_ascii=False, separators=(",", ":")) for group in result)
    arguments.out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{sum(len(group['items']) for group in result)} items, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
