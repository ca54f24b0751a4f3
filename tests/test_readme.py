"""Every command and example of the README and the docs runs as written, in a folder with a few clips."""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .helpers import clips
from .helpers.docs import cli_page

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def blocks(language):
    """Return the blocks of a language in all pages. `console` shows output and is not run: it may need the network."""
    return [found for page in PAGES for found in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.fixture
def folder(tmp_path):
    clips.write(tmp_path / "input.mp4", clips.pictures(60, 96, 64), rate=30)
    for name in ("clips/one.mp4", "clips/a/x.mp4", "more/y.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        clips.write(tmp_path / name, clips.pictures(6))
    (tmp_path / "videos.txt").write_text("clips/one.mp4\nclips/a/x.mp4\n")
    (tmp_path / "prompts.txt").write_text("a pattern\nanother\n")
    (tmp_path / "items.csv").write_text("path,start,duration,caption\nclips/one.mp4,0,0.2,a pattern\n")
    return tmp_path


def run_commands(parts, zygote, folder):
    """Run the commands of some blocks, one after the other, and return their number."""
    lines = [line.split(" #")[0] for part in parts for line in part.splitlines() if line.startswith("movq ")]
    for line in lines:
        result = zygote.run(*shlex.split(line)[1:], cwd=folder)
        assert result.returncode == 0, (line, result.stderr)
    return len(lines)


@pytest.mark.slow
def test_commands(zygote, folder):
    assert run_commands([block for block in blocks("sh") if "batch-encode" not in block], zygote, folder) >= 8


@pytest.mark.slow
def test_commands_of_batches(zygote, folder, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="ray") as own:  # else it joins a cluster of test_ray.py, which may end
        monkeypatch.setenv("RAY_TMPDIR", own)
        assert run_commands([block for block in blocks("sh") if "batch-encode" in block], zygote, folder) >= 8


@pytest.mark.slow
def test_examples(folder, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    examples = blocks("python")
    assert len(examples) >= 2
    for example in examples:
        result = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, (example, result.stderr)


def test_map_of_the_source():
    """The map names every file of the package, and no other file."""
    package = ROOT / "movq_cli"
    there = {str(p.relative_to(package)) for p in package.rglob("*.py") if p.name not in ("__init__.py", "__main__.py")}
    section = (ROOT / "docs" / "architecture.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    named = set(re.findall(r"`([\w/]+\.py)`", section))
    assert named == there


def test_links_lead_somewhere():
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), (page, link)


def test_the_page_of_commands_is_current():
    assert (ROOT / "docs" / "cli.md").read_text() == cli_page(), "make docs"
