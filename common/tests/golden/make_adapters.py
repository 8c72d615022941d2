"""Makes the PEFT adapters of adapters/ with their bases, and the weights that the real peft merges them to.

    python3 -m venv venv && venv/bin/pip install -r quickstart/requirements.txt
    venv/bin/python common/tests/golden/make_adapters.py

For each case: base.safetensors, the adapter as peft saves it, and merged.safetensors, with the tensors of the modules that merging changed. All of it is seeded.
"""

import json
import shutil
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

ROOT = Path(__file__).parent / "adapters"


def llama(**more):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, **more,
    ))


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))


class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Conv2d(3, 4, 3)
        self.point = torch.nn.Conv2d(4, 5, 1)
        self.line = torch.nn.Linear(5, 6)

    def forward(self, x):
        return self.line(self.point(self.wide(x)).mean((2, 3)))


lora = lambda **more: peft.LoraConfig(r=2, lora_alpha=5, **more)
ia3 = lambda targets, feedforward, **more: peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, **more)
untied = {"tie_word_embeddings": False}

CASES = {
    "plain": (lambda: llama(**untied), lora(target_modules=["q_proj", "down_proj"])),
    "rslora": (lambda: llama(**untied), lora(target_modules=["v_proj"], use_rslora=True)),
    "patterns": (lambda: llama(**untied), lora(
        target_modules=["q_proj", "k_proj", "up_proj"],
        rank_pattern={r"layers.1.self_attn.q_proj": 3, "up_proj": 1},
        alpha_pattern={r"^model\.layers\.\d+\.self_attn\.[qk]_proj": 7, "q_proj": 9},
        use_rslora=True,
    )),
    "embedding": (lambda: llama(**untied), lora(target_modules=["embed_tokens", "q_proj"])),
    "saved": (lambda: llama(**untied), lora(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    "tied": (lambda: llama(tie_word_embeddings=True), lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "biases": (lambda: llama(attention_bias=True, **untied), lora(target_modules=["q_proj"], bias="lora_only")),
    "conv1d": (gpt2, lora(target_modules=["c_attn"], fan_in_fan_out=True)),
    "convolutions": (Convolutions, lora(target_modules=["wide", "point", "line"])),
    "ia3": (lambda: llama(attention_bias=True, **untied), ia3(["k_proj", "v_proj", "down_proj"], ["down_proj"])),
    "ia3_conv1d": (gpt2, ia3(["c_attn", "mlp.c_proj"], ["mlp.c_proj"], fan_in_fan_out=True)),
    "ia3_convolutions": (Convolutions, ia3(["wide", "point", "line"], ["point", "line"])),
}


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    for number, (name, (make, config)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        model = make()
        tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
        plain = lambda m: {n: t.detach().clone().contiguous() for n, t in m.state_dict().items() if not (tied and n == "lm_head.weight")}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
        base = plain(model)
        folder = ROOT / name
        folder.mkdir(parents=True)
        adapted = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter in (p for p in adapted.parameters() if p.requires_grad):
                parameter.copy_(torch.randn_like(parameter))
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        kept = json.loads(path.read_text()) | {"base_model_name_or_path": None}
        path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        merged = plain(adapted.merge_and_unload())
        assert merged.keys() == base.keys(), (name, merged.keys() ^ base.keys())
        module = lambda n: n.rpartition(".")[0]
        touched = {module(n) for n, t in merged.items() if not torch.equal(t, base[n])}
        for file, tensors in (("base", base), ("merged", merged)):
            save_file({n: t for n, t in tensors.items() if module(n) in touched}, folder / f"{file}.safetensors")
        print(name, sorted(touched))


if __name__ == "__main__":
    main()
