"""Small Parquet and Arrow files and `datasets` folders, as their own libraries write them; worker/tests/data.rs reads them.

    python3 -m venv venv && venv/bin/pip install pyarrow==26.0.1 datasets==5.2.0
    venv/bin/python worker/tests/golden/make_data.py worker/tests/golden/data
"""

import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

ROWS = [
    {"text": "good", "label": 1, "score": 0.5, "tokens": ["go", "od"], "tags": [0, 1], "answers": {"text": ["a", "b"]}, "image": {"bytes": b"\x89PNG", "path": None}, "yes": True},
    {"text": "bäd", "label": 0, "score": -1.25, "tokens": [], "tags": [], "answers": {"text": []}, "image": {"bytes": None, "path": "x.png"}, "yes": False},
    {"text": "", "label": 1, "score": None, "tokens": ["x"], "tags": [2], "answers": {"text": ["c"]}, "image": {"bytes": b"", "path": "y"}, "yes": None},
]


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(ROWS)
    table = table.append_column("kind", pa.array(["p", "q", "p"]).dictionary_encode())
    table = table.append_column("when", pa.array([0, 1, 2], pa.timestamp("s")))
    for codec in ["snappy", "zstd"]:
        pa.parquet.write_table(table, out / f"{codec}.parquet", compression=codec)
    pa.feather.write_feather(table, out / "file.arrow", compression="uncompressed")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    plain = [{"text": row["text"], "label": row["label"]} for row in ROWS]
    dataset = datasets.Dataset.from_list(plain, features=features)
    datasets.DatasetDict({"train": dataset, "validation": dataset.select([1])}).save_to_disk(out / "saved", num_shards={"train": 2, "validation": 1})


if __name__ == "__main__":
    main()
