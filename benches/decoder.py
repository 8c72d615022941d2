"""Log-likelihoods of texts by transformers and PyTorch, for comparison; `benches/scoring.rs` runs this.

    python decoder.py MODEL TEXTS THREADS BATCH-TOKENS ROUNDS

TEXTS holds JSON lines with `text`. Scaled dot product attention, no gradients, batches sorted by length, tokens made beforehand. Logits are computed for
the places of real tokens only. Prints the items, the summed log-likelihood, and the seconds of each round.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    folder, path, threads, batch_tokens, rounds = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6])
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    before = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [[before] + tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows.sort(key=len, reverse=True)
    batches, room = [], 0
    for row in rows:
        if not batches or room < len(batches[-1][0]):
            batches.append([])
            room = batch_tokens
        batches[-1].append(row)
        room -= len(batches[-1][0])
    seconds, total = [], 0.0
    with torch.inference_mode():
        for _ in range(rounds):
            start, total = time.perf_counter(), 0.0
            for batch in batches:
                longest = len(batch[0])
                ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
                mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
                more = {} if mask.all() else {"attention_mask": mask}
                states = model.model(input_ids=ids, use_cache=False, **more).last_hidden_state[:, :-1]
                real = mask[:, 1:].bool()
                logits = model.lm_head(states[real])
                total -= float(torch.nn.functional.cross_entropy(logits, ids[:, 1:][real], reduction="sum"))
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"items": len(rows), "log": total, "seconds": seconds}))


if __name__ == "__main__":
    main()
