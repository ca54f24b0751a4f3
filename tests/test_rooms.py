"""The structure: imports point one way, and no factor of the model is written down outside it."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "movq_cli"

# Each room may import from itself and from those after it.
ROOMS = [
    "__main__",
    "cli",
    "dataset",
    "describe",
    "batch",
    "evaluate",
    "decode",
    "encode",
    "encoding",
    "plan",
    "budget",
    "codec",
    "schedule",
    "transfers",
    "posterior",
    "device",
    "video",
    "latents",
    "metadata",
    "checkpoints",
    "model",
    "headers",
    "options",
    "values",
    "files",
    "difference",
    "metrics",
    "forks",
    "processes",
    "threads",
    "records",
    "errors",
]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE), ast.parse(path.read_text())


def imported(path, tree):
    """The rooms that a module's own imports name."""
    package = ["movq_cli", *path.parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            full = [*base, *(node.module or "").split(".")] if node.module else base
            if len(full) > 1:
                yield full[1]
            else:
                yield from (alias.name for alias in node.names)


def test_imports_point_down():
    for path, tree in modules():
        room = path.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imported(path, tree):
            if other in ROOMS:
                assert ROOMS.index(room) <= ROOMS.index(other), f"{path} imports {other}"


def test_only_video_imports_pyav_and_only_the_decoding_process_and_the_writer_at_that():
    for path, tree in modules():
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
        if any(name.split(".")[0] == "av" for name in names):
            assert path.parts[0] == "video", path
            assert path.name in (
                "child.py",
                "colour.py",
                "frames.py",
                "keyframes.py",
                "sidedata.py",
                "container.py",
                "integrity.py",
                "write.py",
            ), path


def test_no_factor_outside_the_model():
    """4, 8 and 16 belong to the config; files.py and headers.py speak of bytes, metrics.py of grey levels."""
    allowed = {"files.py", "headers.py", "metrics.py", "device.py", "latents.py", "cli", "video"}
    for path, tree in modules():
        if path.parts[0] in allowed | {"model", "checkpoints"}:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in (4, 8, 16) and not isinstance(node.value, bool):
                raise AssertionError(f"{path}:{node.lineno} has {node.value}")


def test_no_module_is_two_ideas():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
