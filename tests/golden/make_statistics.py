"""Golden Fisher information and Gram matrices of the tiny classifiers of make_architectures.py, by PyTorch's autograd and hooks in F64.

    venv/bin/python tests/golden/make_statistics.py tests/golden/statistics.json

Of each tensor a few elements and the sum are kept; tests/statistics.rs computes the same from the same made-up weights.
"""

import json
import sys

import torch
import transformers

from make_architectures import ENCODERS, model_of, tokens

LENGTHS = [2, 9, 33]


def inputs(kind):
    for number, length in enumerate(LENGTHS):
        ids = tokens(f"text {length}", length)
        types = [int(kind == "bert" and place > length // 2) for place in range(length)]
        yield {"ids": ids, "types": types, "label": number % 3}


def run(model, kind, text):
    more = {"token_type_ids": torch.tensor([text["types"]])} if kind == "bert" else {}
    return model(torch.tensor([text["ids"]]), **more).logits[0]


def fisher(model, kind, texts, given):
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for text in texts:
        logs = torch.log_softmax(run(model, kind, text), -1)
        for label, log in enumerate(logs):
            weight = float(label == text["label"]) if given else log.exp().item()
            found = torch.autograd.grad(log, list(model.parameters()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(sums, found):
                if gradient is not None:
                    sums[name] += weight * gradient**2
    return {name: total / len(texts) for name, total in sums.items()}


def gram(model, kind, texts):
    sums, rows, hooks = {}, {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):

            def hear(_, given, __, key=f"{name}.weight"):
                x = given[0].detach().reshape(-1, given[0].shape[-1])
                sums[key] = sums.get(key, 0) + x.T @ x
                rows[key] = rows.get(key, 0) + len(x)

            hooks.append(layer.register_forward_hook(hear))
    for text in texts:
        run(model, kind, text)
    for hook in hooks:
        hook.remove()
    return {key: total / rows[key] for key, total in sums.items()}


def samples(tensors):
    """Of each tensor that is not zero throughout: its sum, and five elements with their places."""
    found = {}
    for name, tensor in tensors.items():
        flat = tensor.flatten()
        if flat.abs().max() > 0:
            places = sorted({place * 7919 % len(flat) for place in range(4)} | {int(flat.abs().argmax())})
            found[name] = {"sum": flat.sum().item(), "elements": [[place, flat[place].item()] for place in places]}
    return found


def main():
    torch.manual_seed(0)
    golden = {}
    for kind in ["bert", "roberta", "distilbert"]:
        model, config, shapes = model_of(transformers.AutoModelForSequenceClassification, ENCODERS[kind])
        model, texts = model.double(), list(inputs(kind))
        golden[kind] = {
            "config": config,
            "tensors": shapes,
            "texts": texts,
            "log_probabilities": [torch.log_softmax(run(model, kind, text), -1).tolist() for text in texts],
            "model": samples(fisher(model, kind, texts, False)),
            "given": samples(fisher(model, kind, texts, True)),
            "gram": samples(gram(model, kind, texts)),
        }
    with open(sys.argv[1], "w") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
