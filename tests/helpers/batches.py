"""Read the manifest and the files of a batch."""

import json
import os
from pathlib import Path


def manifest(folder):
    return {line["id"]: line for line in map(json.loads, (Path(folder) / "manifest.jsonl").open())}


def tree(folder):
    """Map each file's relative path to its bytes, and "manifest" to its lines without `seconds`, with absolute paths.

    The record of the batch, which is no part of the promise of same bytes, is left out.
    """
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.name == "manifest.jsonl":
            lines = [json.loads(text) for text in path.open()]
            for line in lines:
                line.pop("seconds", None)
                line["path"] = os.path.normpath(os.path.join(os.path.realpath(folder), line["path"]))
            found["manifest"] = lines
        elif path.is_file() and path.name != "run.json":
            found[os.path.relpath(path, folder)] = path.read_bytes()
    return found
