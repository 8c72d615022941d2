"""A stand-in for SGLang, vLLM and other servers of OpenAI's interface: it speaks the documented requests, and answers by the weights that it was given.

    python3 stand_in_server.py MODEL PORT LOG

The answer is "yes" where the model's pooler has a positive bias, else "no"; in a prompt with "break" the connection ends. LOG gets a line per request.
"""

import json
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOG = Path(sys.argv[3])


def answer_of(folder):
    """What a model in `folder` answers."""
    data = (Path(folder) / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    start = json.loads(data[8 : 8 + length])["bert.pooler.dense.bias"]["data_offsets"][0]
    return "yes" if struct.unpack("<f", data[8 + length + start :][:4])[0] > 0 else "no"


class Handler(BaseHTTPRequestHandler):
    answer = answer_of(sys.argv[1])

    def log_message(self, *_):
        pass

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(200 if self.path == "/v1/models" else 404, {"data": []})

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = json.loads(text) if text else None
        with LOG.open("a") as log:
            log.write(self.path + "\n")
        if self.path == "/update_weights_from_disk":
            Handler.answer = answer_of(body["model_path"])
            self.reply(200, {"success": True, "message": "Succeeded to update model weights."})
        elif self.path == "/collective_rpc" and body["method"] == "reload_weights":
            Handler.answer = answer_of(body["kwargs"]["weights_path"])
            self.reply(200, {"results": [None]})
        elif self.path == "/reset_prefix_cache":
            self.reply(200, {})
        elif self.path == "/v1/completions" and body["temperature"] == 0.0:
            if "break" in body["prompt"]:
                self.reply(500, {"error": {"message": "the engine died"}})
            else:
                self.reply(200, {"choices": [{"text": f" {self.answer}\nand so on", "index": 0}]})
        elif self.path == "/v1/chat/completions":
            self.reply(200, {"choices": [{"message": {"role": "assistant", "content": self.answer}}]})
        else:
            self.reply(404, {"error": {"message": f"no such thing: {self.path}"}})


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
