"""Read the manifest and the files of a batch."""

import json
import os
from pathlib import Path


def manifest(folder):
    return {line["id"]: line for line in map(json.loads, (Path(folder) / "manifest.jsonl").open())}


def tree(folder):
    """Map each file's relative path to its bytes, and "manifest" to the manifest's lines without `seconds`."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.name == "manifest.jsonl":
            lines = [json.loads(text) for text in path.open()]
            found["manifest"] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        elif path.is_file():
            found[os.path.relpath(path, folder)] = path.read_bytes()
    return found
