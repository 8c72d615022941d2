"""Three tiny GPT-2 models with made-up weights and an offline multiple-choice task for lm-evaluation-harness, in the folder given.

    python make_harness_task.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ["red", "green", "blue", "sky", "grass", "blood", "the", "is", "what", "colour", "?", "."]


def main():
    folder = Path(sys.argv[1]).resolve()
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[END]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[END]", unk_token="[UNK]", pad_token="[END]")
    for seed, name in enumerate(["base", "one", "two"]):
        torch.manual_seed(seed)
        config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=len(vocabulary), bos_token_id=1, eos_token_id=1)
        GPT2LMHeadModel(config).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    things = ["sky", "grass", "blood"]
    questions = [{"question": f"what colour is the {thing} {'.' * dots}", "choices": ["blue", "green", "red"], "answer": number}
                 for dots in range(4) for number, thing in enumerate(things)]
    (tasks / "tiny.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tasks / "tiny.yaml").write_text(f"""task: tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tasks / 'tiny.jsonl'}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
""")


if __name__ == "__main__":
    main()
