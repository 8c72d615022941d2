"""Compares what `evolver merge` makes of mergekit's YAML with what the real mergekit makes of it: slices, gradients, precedence, tokenizers, adapters.

    python3 -m venv venv && venv/bin/pip install mergekit==0.1.5 torch transformers peft safetensors tokenizers
    cargo build --release
    venv/bin/python oneshot/tests/compare_mergekit.py target/release/evolver [DIR]

The models are Llamas with random weights, the vocabularies overlap. For each definition: whether both have the same tensors and the same tokens, and the
largest difference. Where a vocabulary is joined, rows are compared token by token, since mergekit's order of a union's new tokens is not fixed.
`common/tests/compare_mergekit.py` compares the methods.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = {
    "base": ["<s>", "a", "b", "c", "d"],
    "same": ["<s>", "a", "b", "c", "d"],
    "more": ["<s>", "a", "b", "c", "d", "x", "y"],
    "other": ["<s>", "y", "b", "z"],
}
EMBEDDINGS = ["model.embed_tokens.weight", "lm_head.weight"]

CASES = {
    "stacked layers": """
merge_method: passthrough
slices:
  - sources: [{model: base, layer_range: [0, 3]}]
  - sources: [{model: same, layer_range: [1, 4], parameters: {scale: [{filter: down_proj, value: 0.5}, {value: 1}]}}]
""",
    "slerp over slices": """
merge_method: slerp
base_model: base
slices:
  - sources: [{model: base, layer_range: [0, 3]}, {model: same, layer_range: [0, 3]}]
  - sources: [{model: base, layer_range: [3, 4]}, {model: same, layer_range: [2, 3]}]
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.25}]
""",
    "precedence": """
merge_method: linear
slices:
  - sources:
      - {model: base, layer_range: [0, 4], parameters: {weight: [{filter: q_proj, value: [1, 2]}]}}
      - {model: same, layer_range: [0, 4]}
    parameters: {weight: [{filter: up_proj, value: 4}]}
parameters: {weight: [{filter: norm, value: 2}, {value: 1}], normalize: false}
""",
    "ties": """
merge_method: ties
base_model: base
models: [{model: same, parameters: {weight: 0.5, density: 0.6}}, {model: base}]
""",
    "union": """
merge_method: linear
models: [{model: base}, {model: more}, {model: other}]
parameters: {weight: 1}
tokenizer_source: union
""",
    "union over a base": """
merge_method: task_arithmetic
base_model: base
models: [{model: more}, {model: other}]
parameters: {weight: 0.5}
tokenizer_source: union
""",
    "the base's tokens": """
merge_method: task_arithmetic
base_model: base
models: [{model: more}, {model: other}]
parameters: {weight: 0.5}
tokenizer: {source: base, pad_to_multiple_of: 8}
""",
    "a model's tokens": """
merge_method: linear
models: [{model: base}, {model: more}, {model: other}]
parameters: {weight: 1}
tokenizer:
  source: other
  tokens:
    y: {source: {kind: model_token, model: base, token: c}, force: true}
    z: {source: {kind: zero}}
    new: {source: {kind: model_token, model: more, token_id: 5}}
""",
    "an adapter": """
merge_method: linear
models: [{model: base, parameters: {weight: 0.3}}, {model: base+lora, parameters: {weight: 0.7}}]
""",
}


def make(folder):
    for number, (name, words) in enumerate(WORDS.items()):
        torch.manual_seed(number)
        config = transformers.LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        )
        path = folder / name
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
        model.save_pretrained(path)
        config = json.loads((path / "config.json").read_text()) | {"torch_dtype": "float32"}
        (path / "config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<s>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<s>").save_pretrained(path)
    torch.manual_seed(9)
    adapted = peft.get_peft_model(
        transformers.LlamaForCausalLM.from_pretrained(folder / "base"),
        peft.LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "embed_tokens"], use_rslora=True),
    )
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.copy_(torch.randn_like(parameter))
    adapted.save_pretrained(folder / "lora")


def weights(path):
    return {n: t for file in sorted(Path(path).glob("*.safetensors")) for n, t in load_file(file).items()}


def tokens(path):
    return Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab()


def run(command, folder):
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])


def main():
    evolver = Path(sys.argv[1]).resolve()
    mergekit = Path(sys.executable).parent / "mergekit-yaml"
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    make(folder)
    print(f"{'definition':<20} {'tensors':>8} {'tokens':>8} {'config':>8} {'largest difference':>20}")
    for number, (name, text) in enumerate(CASES.items()):
        file = folder / f"{number}.yaml"
        file.write_text(text + "dtype: float32\n")
        try:
            ours, theirs = folder / f"{number}-evolver", folder / f"{number}-mergekit"
            run([evolver, "merge", file, "--out", ours], folder)
            run([mergekit, file, theirs, "--no-write-model-card", "--lora-merge-cache", folder / "loras"], folder)
        except RuntimeError as error:
            print(f"{name:<20} {error}")
            continue
        a, b = weights(ours), weights(theirs)
        vocabularies = tokens(ours), tokens(theirs)
        config = lambda path: {k: v for k, v in json.loads((path / "config.json").read_text()).items() if k in ("num_hidden_layers", "vocab_size")}
        largest = 0.0
        for tensor in a.keys() & b.keys():
            x, y = a[tensor].double(), b[tensor].double()
            if tensor in EMBEDDINGS and x.shape == y.shape:
                # Row by row, by token; then the rows that belong to none.
                common = sorted(vocabularies[0].keys() & vocabularies[1].keys())
                rest = list(range(max(map(len, vocabularies)), len(x)))
                x = x[[vocabularies[0][token] for token in common] + rest]
                y = y[[vocabularies[1][token] for token in common] + rest]
            largest = max(largest, (x - y).abs().max().item() if x.shape == y.shape else float("inf"))
        same = lambda one, two: "same" if one == two else "differ"
        print(f"{name:<20} {same(a.keys(), b.keys()):>8} {same(*map(set, vocabularies)):>8} {same(config(ours), config(theirs)):>8} {largest:20.2e}")
    if len(sys.argv) <= 2:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
