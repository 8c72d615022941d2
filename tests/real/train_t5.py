"""A small T5 trained from scratch on the quickstart's sentiment data, and two experts of it: film reviews and tweets.

    cargo run --release -- quickstart --prepare-only --dir quickstart-run
    venv/bin/python tests/real/train_t5.py quickstart-run OUT
    cargo run --release -- run OUT/search.toml --dir OUT/search

Seeded; some minutes on two cores. The model reads a text and answers with a label's word; the tasks score the likeliest label and the answer itself.
"""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

DOMAINS = ["movies", "tweets"]
LABELS = ["negative", "neutral", "positive"]
SEARCH = """# Two experts of a small T5 that answers a text with its sentiment.
name = "sentiment-by-words"
[models]
base = "base"
experts = [{{ name = "movies", path = "movies" }}, {{ name = "tweets", path = "tweets" }}]
[search]
in_flight = 2
[stop]
offspring = 12
"""
TASK = """
[[tasks]]
name = "{domain}-{evaluator}"
evaluator = "{evaluator}"
dev = "{data}/{domain}.dev.jsonl"
test = "{data}/{domain}.test.jsonl"
labels = ["negative", "neutral", "positive"]
dev_items = 150
test_items = 300
max_length = 48
{more}
"""


def rows(data, domain, part):
    """The rows of a part in a seeded order: the file has them by valence."""
    found = [json.loads(line) for line in (data / f"{domain}.{part}.jsonl").read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(found)
    return found


def train(model, tokenizer, items, epochs, rate):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    answers = tokenizer(LABELS, padding=True, return_tensors="pt").input_ids
    answers[answers == tokenizer.pad_token_id] = -100
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(items)).split(32):
            chosen = [items[int(index)] for index in batch]
            texts = tokenizer([item["text"] for item in chosen], truncation=True, max_length=48, padding=True, return_tensors="pt")
            labels = answers[[LABELS.index(item["label"]) if isinstance(item["label"], str) else item["label"] for item in chosen]]
            loss = model(input_ids=texts.input_ids, attention_mask=texts.attention_mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def main():
    data, out = (Path(sys.argv[1]) / "data").resolve(), Path(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(2)
    training = {domain: rows(data, domain, "train")[:2400] for domain in DOMAINS}
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=2000, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    raw.train_from_iterator([item["text"] for items in training.values() for item in items] + LABELS * 500, trainer)
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(
        d_model=96, d_kv=24, d_ff=192, num_layers=2, num_heads=4, vocab_size=len(tokenizer), dropout_rate=0.0, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )
    base = train(T5ForConditionalGeneration(config), tokenizer, [item for items in training.values() for item in items], 3, 2e-3)
    found = {"base": base}
    for domain in DOMAINS:
        expert = T5ForConditionalGeneration(config)
        expert.load_state_dict(base.state_dict())
        found[domain] = train(expert, tokenizer, training[domain], 3, 5e-4)
    for name, model in found.items():
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
    more = {"multiple_choice": 'choices = ""', "generation": 'metric = "exact_match"\nmax_new_tokens = 6'}
    tasks = [TASK.format(domain=domain, evaluator=evaluator, data=data, more=more[evaluator]) for domain in DOMAINS for evaluator in more]
    (out / "search.toml").write_text(SEARCH.replace("{{", "{").replace("}}", "}") + "".join(tasks))
    with torch.no_grad():
        for name, model in found.items():
            for domain in DOMAINS:
                items = rows(data, domain, "dev")[:200]
                texts = tokenizer([item["text"] for item in items], truncation=True, max_length=48, padding=True, return_tensors="pt")
                answers = model.generate(input_ids=texts.input_ids, attention_mask=texts.attention_mask, max_new_tokens=6, do_sample=False)
                words = tokenizer.batch_decode(answers, skip_special_tokens=True)
                wanted = [item["label"] if isinstance(item["label"], str) else LABELS[item["label"]] for item in items]
                print(f"{name} on {domain} dev: {sum(a.strip() == b for a, b in zip(words, wanted)) / len(items):.3f}")


if __name__ == "__main__":
    main()
