"""A resident evaluator for evolver: protocol version 1, one file, no dependencies.

    import evolver_resident

    def evaluate(request, progress):
        # request.model: folder with model.safetensors (map it: it lies in shared memory where there is any), config.json and the tokenizer
        # request.items: the items, a list of dicts; request.split: "dev" or "test"; request.parameters: the task's keys
        credits = []
        for item in request.items:
            credits.append(1.0)        # in [0, 1]
            progress(len(credits))     # now and then: silence is taken for a hang
        return {"metrics": {"accuracy": sum(credits) / len(credits)}, "credits": credits}

    evolver_resident.serve(evaluate)

An exception in `evaluate` fails the model, not the process. What is printed goes to standard error, of which the end is kept with a failure.
"""

import json
import os
import sys
import traceback
from dataclasses import dataclass, field

VERSION = 1


@dataclass
class Request:
    """One model to evaluate."""

    model: str
    items: list
    split: str
    task: str = ""
    parameters: dict = field(default_factory=dict)


def serve(evaluate):
    """Answers until standard input ends."""
    # Standard output belongs to the protocol; prints of any library go to standard error.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    task, parameters = "", {}

    def say(message):
        output.write(json.dumps(message, allow_nan=False) + "\n")
        output.flush()

    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "hello":
            task, parameters = message["task"], message["parameters"]
            say({"type": "ready", "evolver": VERSION})
        elif message["type"] == "evaluate":
            number = message["id"]
            try:
                with open(message["items"], encoding="utf-8") as file:
                    items = [json.loads(item) for item in file]
                request = Request(message["model"], items, message["split"], task, parameters)
                result = evaluate(request, lambda done: say({"type": "progress", "id": number, "done": int(done)}))
                say({"type": "result", "id": number, **result})
            except Exception as error:
                traceback.print_exc()
                say({"type": "error", "id": number, "message": f"{type(error).__name__}: {error}"})
