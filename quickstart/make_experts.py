"""Train the quickstart's four experts: one LoRA adapter per domain, from the train split only.

    cargo run --release -- quickstart --prepare-only --dir quickstart-run
    python3 -m venv venv && venv/bin/pip install -r quickstart/requirements.txt
    venv/bin/python quickstart/make_experts.py quickstart-run quickstart/experts

Reads DIR/base (the base model with a classification head of zeros) and DIR/data/<domain>.train.jsonl, both made by the first command.
Writes OUT/<domain>/adapter_config.json and adapter_model.safetensors (F16). Embeddings and pooler stay the base's; every expert
starts from the same weights, so that their differences to the base are task vectors. Seeded; the same versions of the packages
in requirements.txt on the same kind of processor give the same adapters.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

DOMAINS = ["tweets", "movies", "products", "editorials"]
LABELS = ["negative", "neutral", "positive"]
RANK = 8
ALPHA = 16
BATCH = 32
MAX_LENGTH = 96


def read_rows(path, labels, limit, seed):
    """Up to `limit` (text, label index) rows of a JSONL file, drawn without replacement."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(seed).shuffle(rows)
    return [(row["text"], labels.index(row["label"])) for row in rows[:limit]]


def batches(rows, tokenizer, seed):
    """Batches of similar length, in random order: little padding, and still a fresh mix every epoch."""
    draw = random.Random(seed)
    keyed = sorted(rows, key=lambda row: (len(row[0]) // 12, draw.random()))
    groups = [keyed[start : start + BATCH] for start in range(0, len(keyed), BATCH)]
    draw.shuffle(groups)
    for group in groups:
        texts, labels = zip(*group)
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        yield tokens, torch.tensor(labels)


def balance(rows, labels):
    """Weights of the classes, inverse to how often a domain has them. Domains differ much in that (tweets are mostly negative), and an
    expert that learns the rate of a class instead of its words carries that into every merge."""
    counts = torch.tensor([max(1, sum(label == index for _, label in rows)) for index in range(len(labels))])
    return len(rows) / (len(labels) * counts)


def train(domain, directory, arguments):
    """The trained PEFT model of one domain."""
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(directory / "base")
    # Labels of another number need a head of another width, which starts at random.
    named = dict(enumerate(arguments.labels))
    model = AutoModelForSequenceClassification.from_pretrained(directory / "base", id2label=named, ignore_mismatched_sizes=True)
    adapter = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
        exclude_modules=r"pooler\.dense",
        modules_to_save=["classifier"],
        task_type="SEQ_CLS",
    )
    model = get_peft_model(model, adapter)
    rows = read_rows(directory / "data" / f"{domain}.train.jsonl", arguments.labels, arguments.rows, arguments.seed)
    criterion = torch.nn.CrossEntropyLoss(weight=balance(rows, arguments.labels))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=0.01)
    steps = arguments.epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20) * max(0.0, 1.0 - step / steps))
    model.train()
    for epoch in range(arguments.epochs):
        total = 0.0
        for tokens, labels in batches(rows, tokenizer, arguments.seed + epoch):
            loss = criterion(model(**tokens).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        print(f"{domain}: epoch {epoch + 1}, {len(rows)} rows, mean loss {total / len(rows):.4f}", flush=True)
    return model


def save(model, directory):
    """The adapter in PEFT's layout, in F16, without anything that depends on this machine."""
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    weights = directory / "adapter_model.safetensors"
    tensors = {name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    config_path = directory / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config["base_model_name_or_path"] = "sentence-transformers/all-MiniLM-L6-v2"
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="folder made by `evolver quickstart --prepare-only`")
    parser.add_argument("out", type=Path, help="where the adapters go")
    parser.add_argument("--domains", nargs="*", default=DOMAINS)
    parser.add_argument("--labels", nargs="*", default=LABELS, help="labels of the data, in the order of the head's outputs")
    parser.add_argument("--rows", type=int, default=2000, help="training rows of each domain")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    for domain in arguments.domains:
        save(train(domain, arguments.directory, arguments), arguments.out / domain)


if __name__ == "__main__":
    main()
