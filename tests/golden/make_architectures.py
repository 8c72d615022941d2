"""Golden outputs of every architecture: what transformers and PyTorch give, in F32, for tiny models with made-up weights.

    python3 -m venv venv && venv/bin/pip install -r quickstart/requirements.txt
    venv/bin/python tests/golden/make_architectures.py tests/golden/architectures.json

No weights are stored: `values` makes them from a tensor's name, and tests/architectures.rs does the same. Names and shapes are those of the files that
`save_pretrained` writes. Each sequence is run alone, so that no padding or mask takes part.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

MASK = (1 << 64) - 1


def values(name, shape):
    """Uniform in [-0.25, 0.25) by splitmix64 from the name's FNV-1a hash; vectors of weights, which are gains, about 1."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    unit = (x >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    gain = np.float32(1 if len(shape) == 1 and name.endswith(".weight") else 0)
    return (gain + np.float32(0.25) * unit).reshape(shape)


SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=60)
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
DEBERTA = dict(type_vocab_size=0, relative_attention=True, max_position_embeddings=64, position_biased_input=False, **LABELS)
DECODER = dict(**SIZES, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)
T5 = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=60, relative_attention_num_buckets=8, relative_attention_max_distance=16)
VISION = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4)

ENCODERS = {
    "bert": transformers.BertConfig(**SIZES, max_position_embeddings=40, **LABELS),
    "roberta": transformers.RobertaConfig(**SIZES, max_position_embeddings=42, type_vocab_size=1, pad_token_id=1, **LABELS),
    "xlm-roberta": transformers.XLMRobertaConfig(**SIZES, max_position_embeddings=42, type_vocab_size=1, pad_token_id=1, **LABELS),
    "distilbert": transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=60, max_position_embeddings=40, **LABELS),
    "deberta-v3": transformers.DebertaV2Config(
        **SIZES, **DEBERTA, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm"
    ),
    "deberta-v2": transformers.DebertaV2Config(**SIZES, **DEBERTA, pos_att_type=["c2p", "p2c"], max_relative_positions=16),
    "modernbert": transformers.ModernBertConfig(
        **{**SIZES, "num_hidden_layers": 4}, max_position_embeddings=64, local_attention=8, classifier_pooling="mean",
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, **LABELS
    ),
}
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
DECODERS = {
    "llama": transformers.LlamaConfig(**DECODER, num_key_value_heads=2, rope_parameters=LLAMA3),
    "mistral": transformers.MistralConfig(**DECODER, num_key_value_heads=2, sliding_window=6),
    "qwen2": transformers.Qwen2Config(**DECODER, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**DECODER, num_key_value_heads=2, head_dim=16),
    "gemma": transformers.GemmaConfig(**DECODER, num_key_value_heads=1, head_dim=16),
    "gemma2": transformers.Gemma2Config(**DECODER, num_key_value_heads=2, head_dim=16, sliding_window=6, query_pre_attn_scalar=24, final_logit_softcapping=8.0),
    "gemma3": transformers.Gemma3TextConfig(**{**DECODER, "num_hidden_layers": 7}, num_key_value_heads=2, head_dim=16, sliding_window=6, query_pre_attn_scalar=24),
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=60, bos_token_id=1, eos_token_id=2),
    "phi": transformers.PhiConfig(**DECODER, partial_rotary_factor=0.5),
    "phi3": transformers.Phi3Config(**DECODER, num_key_value_heads=2, sliding_window=6),
}
ENCODER_DECODERS = {
    "t5": transformers.T5Config(**T5),
    "t5-v1.1": transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}
IMAGES = {
    "vit": transformers.ViTConfig(**VISION, **LABELS),
    "clip": transformers.CLIPConfig(vision_config=VISION, text_config=dict(**SIZES), **LABELS),
}


def tokens(name, length, low=3):
    """Made-up tokens of a text."""
    return [low + int(value * 200 + 50) % (60 - low) for value in values(name, (length,)).tolist()]


def model_of(kind, config):
    """The model with made-up weights, its config as saved, and its tensors as saved."""
    with tempfile.TemporaryDirectory() as folder:
        kind.from_config(config).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        with safe_open(path, "np") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}
        shapes = {key: shape for key, shape in shapes.items() if kinds[key] == "F32"}
        save_file({key: values(key, shape) for key, shape in shapes.items()}, path, metadata={"format": "pt"})
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        return model, json.loads((Path(folder) / "config.json").read_text()), shapes


def rounded(tensor):
    return [round(value, 7) for value in tensor.flatten().tolist()]


def encoder(config, kind):
    model, config, shapes = model_of(kind, config)
    texts = []
    for length in [1, 2, 9, 33]:
        ids = tokens(f"text {length}", length)
        types = [int(place > length // 2) for place in range(length)] if config.get("type_vocab_size", 2) > 1 and config["model_type"] == "bert" else [0] * length
        more = {"token_type_ids": torch.tensor([types])} if config["model_type"] == "bert" else {}
        texts.append({"ids": ids, "types": types, "logits": rounded(model(torch.tensor([ids]), **more).logits[0])})
    return {"config": config, "tensors": shapes, "texts": texts}


def decoder(config):
    model, config, shapes = model_of(transformers.AutoModelForCausalLM, config)
    texts = []
    for length in [1, 7, 30]:
        ids = tokens(f"text {length}", length)
        logits = model(torch.tensor([ids])).logits[0]
        logs = torch.log_softmax(logits, -1)
        along = [logs[place, ids[place + 1]] for place in range(length - 1)]
        texts.append({"ids": ids, "next": rounded(logs[-1]), "along": rounded(torch.stack(along)) if along else [], "answer": greedy(model, ids)})
    return {"config": config, "tensors": shapes, "texts": texts}


def greedy(model, ids):
    """Twelve tokens, each from the whole text: no cache takes part."""
    ids = list(ids)
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-12:]


def encoder_decoder(config):
    model, config, shapes = model_of(transformers.AutoModelForSeq2SeqLM, config)
    texts = []
    for length in [1, 7, 30]:
        ids, answer = tokens(f"text {length}", length), tokens(f"answer {length}", 9)
        start = [config["decoder_start_token_id"]] if config.get("decoder_start_token_id") is not None else [0]
        run = lambda given: model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([start + given])).logits[0]
        logs = torch.log_softmax(run(answer), -1)
        found = []
        for _ in range(12):
            found.append(int(run(found)[-1].argmax()))
        along = rounded(torch.stack([logs[place, token] for place, token in enumerate(answer)]))
        texts.append({"ids": ids, "given": answer, "along": along, "next": rounded(logs[0]), "answer": found})
    return {"config": config, "tensors": shapes, "texts": texts}


def vision(config):
    model, config, shapes = model_of(transformers.AutoModelForImageClassification, config)
    images = [{"name": name, "logits": rounded(model(torch.tensor(4 * values(name, (1, 3, 16, 16)))).logits[0])} for name in ["one", "two"]]
    return {"config": config, "tensors": shapes, "images": images}


def main():
    golden = {"encoders": {}, "taggers": {}, "decoders": {}, "encoder_decoders": {}, "vision": {}}
    with torch.no_grad():
        for name, config in ENCODERS.items():
            golden["encoders"][name] = encoder(config, transformers.AutoModelForSequenceClassification)
            golden["taggers"][name] = encoder(config, transformers.AutoModelForTokenClassification)
        golden["decoders"] = {name: decoder(config) for name, config in DECODERS.items()}
        golden["encoder_decoders"] = {name: encoder_decoder(config) for name, config in ENCODER_DECODERS.items()}
        golden["vision"] = {name: vision(config) for name, config in IMAGES.items()}
    lines = []
    for kind, models in golden.items():
        inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(model, separators=(',', ':'))}" for name, model in models.items())
        lines.append(f"{json.dumps(kind)}: {{\n{inner}\n}}")
    Path(sys.argv[1]).write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(Path(sys.argv[1]).stat().st_size, "bytes")


if __name__ == "__main__":
    main()
