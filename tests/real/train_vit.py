"""A small vision transformer trained from scratch on scikit-learn's digits (1,797 images), and two experts of it: upright and turned digits.

    venv/bin/python tests/real/train_vit.py OUT
    cargo run --release -- run OUT/search.toml --dir OUT/search

Seeded; about a minute on two cores. The folder holds base and experts, images as PNG in folders by label, and a search over them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

SEARCH = """# Two experts of a small vision transformer: digits as they are, and turned by a quarter.
name = "digits"
[models]
base = "base"
experts = [{ name = "upright", path = "upright" }, { name = "turned", path = "turned" }]
[[tasks]]
name = "upright"
evaluator = "image_classification"
dev = "data/upright/dev"
test = "data/upright/test"
[[tasks]]
name = "turned"
evaluator = "image_classification"
dev = "data/turned/dev"
test = "data/turned/test"
[search]
in_flight = 2
[stop]
offspring = 16
"""


def train(model, images, labels, epochs, rate):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
            loss = model(pixel_values=images[batch], labels=labels[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def main():
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(2)
    data = load_digits()
    grey = np.round(data.images * 255 / 16).astype(np.uint8)
    sides = {"upright": grey, "turned": np.ascontiguousarray(np.rot90(grey, axes=(1, 2)))}
    order = np.random.default_rng(0).permutation(len(grey))
    parts = {"train": order[:1077], "dev": order[1077:1437], "test": order[1437:]}
    for side, images in sides.items():
        for part in ["dev", "test"]:
            for index in parts[part]:
                folder = out / "data" / side / part / str(data.target[index])
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[index]).convert("RGB").save(folder / f"{index:04}.png")
    names = {str(label): label for label in range(10)}
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=8, patch_size=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, label2id=names, id2label={v: k for k, v in names.items()},
    )
    tensor = lambda images: torch.tensor((images[:, None].repeat(3, 1) / 255 - 0.5) / 0.5, dtype=torch.float32)
    labels = torch.tensor(data.target[parts["train"]])
    images = {side: tensor(images[parts["train"]]) for side, images in sides.items()}
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    both = torch.cat([images["upright"], images["turned"]])
    base = train(ViTForImageClassification(config), both, torch.cat([labels, labels]), 4, 1e-3)
    models = {"base": base}
    for side in sides:
        expert = ViTForImageClassification(config)
        expert.load_state_dict(base.state_dict())
        models[side] = train(expert, images[side], labels, 12, 5e-4)
    with torch.no_grad():
        for name, model in models.items():
            model.save_pretrained(out / name)
            processor.save_pretrained(out / name)
            for side, all_images in sides.items():
                found = model(pixel_values=tensor(all_images[parts["dev"]])).logits.argmax(-1).numpy()
                print(f"{name} on {side} dev: {(found == data.target[parts['dev']]).mean():.4f}")
    (out / "search.toml").write_text(SEARCH)


if __name__ == "__main__":
    main()
