"""The structure: imports point one way, and no factor of the model is written outside it."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "movq_cli"

# Each may import from those after it; rooms also import from themselves.
_ROOMS = """
    __main__ cli describe export sampling dataset reading batch evaluate decode encode encoding shared provenance first_frame plan
    budget memory codec schedule transfers posterior scaling device video latents int8 metadata checkpoints model headers targets
    options fields values files difference metrics forks processes threads records errors _lazy _version
"""
ROOMS = _ROOMS.split()

INSIDE = {
    "export": "__init__ run manifest back formats format embeds",
    "cli": "__init__ info batch decode encode eval export weights options planned watch items paths habits tables show",
    "batch": """
        __init__ prune run dry_run merge prepare record state
        discover folders captions lists parsing probe cut names replace reuse orphans presence resume choices settings
        inline pool queue worker ray_engine engines pack card summary tars locks manifest item paths
    """,
    "video": """
        __init__ reader decoders child write pictures clock frames decoding counting keyframes integrity sidedata container stills
        transport raw exif messages times selection colour geometry info
    """,
    "checkpoints": "__init__ convert checkpoint locate cache folders layouts configs",
    "model": "__init__ encoder decoder quantizers blocks stages norms causal strips store convolution cost config",
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE), ast.parse(path.read_text())


def imported(path, tree):
    """Yield the modules that a module's own imports name, as parts of their paths in the package."""
    package = path.parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                inner = (*base, alias.name)
                yield inner if node.module is None or PACKAGE.joinpath(*inner).with_suffix(".py").exists() else base


def name(path):
    return path.with_suffix("").parts


def test_imports_point_down():
    """Imports point down between rooms and inside them; a new file needs a place in the lists above."""
    for path, tree in modules():
        own = name(path)
        if own == ("__init__",):
            continue
        for other in imported(path, tree):
            assert ROOMS.index(own[0]) <= ROOMS.index(other[0]), f"{path} imports {'.'.join(other)}"
            if own[0] == other[0] and len(own) > 1:
                order = INSIDE[own[0]].split()
                assert order.index(own[1]) < order.index((*other, "__init__")[1]), f"{path} imports {'.'.join(other)}"


def test_every_file_has_its_place():
    there = {name(path) for path, _ in modules()} - {("__init__",)}
    assert {own[0] for own in there} == set(ROOMS)
    assert {own for own in there if len(own) > 1} == {(room, file) for room in INSIDE for file in INSIDE[room].split()}


def test_no_test_imports_another():
    for path in PACKAGE.parent.joinpath("tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not any(part.startswith("test_") for part in names), f"{path} imports {names}"


def test_functions_are_short_and_commands_thin():
    """A function has at most 60 lines, the body of a command 25: options in, one call of the library, print."""
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
                if path.parts[0] == "cli" and any("takes" in ast.unparse(d) for d in node.decorator_list):
                    start = node.body[1 if len(node.body) > 1 else 0].lineno
                    assert node.end_lineno - start < 25, f"{path}: {node.name}"


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
                "decoding.py",
                "counting.py",
                "keyframes.py",
                "sidedata.py",
                "container.py",
                "integrity.py",
                "pictures.py",
                "write.py",
            ), path


def test_no_factor_outside_the_model():
    """4, 8 and 16 belong to the config; files.py and headers.py count bytes, metrics.py grey levels, targets.py
    other people's frames.
    """
    allowed = {"files.py", "headers.py", "metrics.py", "device.py", "latents.py", "targets.py", "cli", "video"}
    for path, tree in modules():
        if path.parts[0] in allowed | {"model", "checkpoints"}:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in (4, 8, 16) and not isinstance(node.value, bool):
                raise AssertionError(f"{path}:{node.lineno} has {node.value}")


def test_no_module_is_two_ideas():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
