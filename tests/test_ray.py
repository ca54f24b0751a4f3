"""Workers on Ray, on a real cluster of this machine: the same results as local workers, also when actors are killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from movq_cli import encode_batch

from .helpers import clips
from .helpers.batches import manifest, tree
from .helpers.processes import children, relays, wait_for
from .helpers.processes import command as command_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ray")
    (made / "in").mkdir()
    for i in range(6):
        clips.write(made / "in" / f"{i}.mp4", clips.pictures(25 + i, 160, 128))
    (made / "in" / "bad.mp4").write_text("no video")
    encode_batch([made / "in"], made / "local", workers=2)
    return made


def held(count):
    """Return (relay, worker) of workers that were stopped while encoding, so that a kill hits something at work."""
    found = wait_for(lambda: len(relays()) >= count and relays(), 100)
    for _, worker in found:
        os.kill(worker, signal.SIGSTOP)
    if len(found) >= count and set(found) <= set(relays()):
        return found
    let_go(found)
    return held(count)


def let_go(found):
    for _, worker in found:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)


def test_an_actor_that_is_killed_costs_one_attempt_and_the_bytes_are_those_of_local_workers(folder, tmp_path):
    command = [sys.executable, "-m", "movq_cli", "batch-encode", str(folder / "in"), "-o", "out", "--engine", "ray"]
    process = subprocess.Popen(
        [*command, "--workers", "2"], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    found = held(1)
    relay, worker = found[0]
    os.kill(relay, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{worker}"), 10)
    let_go(found[1:])
    said, talk = process.communicate(timeout=120)
    assert process.returncode == 1, talk
    assert said.startswith("out: 6 done, 1 failed of 7 items; ")
    assert "by 2 workers" in said
    lines = manifest(tmp_path / "out")
    again = [line for line in lines.values() if line.get("warnings")]
    assert len(again) == 1, (talk, lines)
    assert again[0]["warnings"][0].startswith("made at attempt 2; at the first: ")
    assert "actor or machine is gone" in again[0]["warnings"][0]
    again[0]["warnings"] = []
    wanted = manifest(folder / "local")
    for line in (*lines.values(), *wanted.values()):
        line["path"] = os.path.basename(line["path"])  # the folders are in different places
        line.pop("seconds", None)
    assert lines == wanted
    made, local = tree(tmp_path / "out"), tree(folder / "local")
    assert {name: data for name, data in made.items() if name != "manifest"} == {
        name: data for name, data in local.items() if name != "manifest"
    }
    assert not relays()


def test_in_python_with_a_cluster_that_is_there(folder, tmp_path):
    """A process of its own is needed: Ray stays in the process that it was started in."""
    code = (
        "import json, sys, ray, movq_cli\n"
        "ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR')\n"
        "for verify in (False, True):\n"
        "    result = movq_cli.encode_batch([sys.argv[1]], 'out', engine='ray', verify=verify)\n"
        "    print(json.dumps([result.workers, sorted(line['id'] for line in result.made)]))\n"
        "assert ray.is_initialized()\n"
        "ray.shutdown()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder / "in")], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    names = [f"{i}.mp4" for i in range(6)] + ["bad.mp4"]
    assert result.stdout.splitlines() == [str([1, names]).replace("'", '"'), '[1, ["bad.mp4"]]']
    made, local = tree(tmp_path / "out"), tree(folder / "local")
    assert made == local


def test_waiting_for_a_machine_can_be_interrupted(folder, tmp_path):
    command = [sys.executable, "-m", "movq_cli", "batch-encode", str(folder / "in"), "-o", "out", "--engine", "ray"]
    process = subprocess.Popen(
        [*command, "--threads", "999"], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(lambda: any(b"raylet" in b"".join(command_of(child)) for child in children(process.pid)))
    time.sleep(15)  # until it waits: while Ray starts, it handles the signals
    process.send_signal(signal.SIGTERM)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, talk
    assert "stopped by SIGTERM" in talk


def test_what_cannot_be(folder, movq):
    result = movq("batch-encode", folder / "in", "-o", "out", "--engine", "ray", "--device", "cuda:1")
    assert result.returncode == 2
    assert "--device: goes with auto, cpu or cuda" in result.stderr
    result = movq("batch-encode", folder / "in", "-o", "out", "--engine", "ray", "--ray-gpus", "1.5")
    assert result.returncode == 2
    assert "--ray-gpus: above 1 must be a whole number" in result.stderr
    result = movq("batch-encode", folder / "in", "-o", "out", "--engine", "ray", "--ray-address", "127.0.0.1:1")
    assert result.returncode == 1
    assert "movq: --ray-address: no cluster at 127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_machine_that_is_lost_costs_one_attempt(folder, tmp_path):
    """Ray sees two machines; the test runs in a process of its own, which takes one away."""
    code = (
        "import subprocess, sys\n"
        "from ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False})\n"
        "other = cluster.add_node(num_cpus=1)\n"
        "command = [sys.executable, '-m', 'movq_cli', 'batch-encode', sys.argv[1], '-o', 'out', '--engine', 'ray']\n"
        "command += ['--ray-address', cluster.address]\n"
        "movq = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)\n"
        "from tests.test_ray import held, let_go\n"
        "found = held(2)\n"
        "cluster.remove_node(other, allow_graceful=False)\n"
        "let_go(found)\n"
        "print(movq.communicate(timeout=200)[0], movq.returncode)\n"
        "cluster.shutdown()\n"
    )
    root = os.path.dirname(os.path.dirname(__file__))
    environment = os.environ | {"PYTHONPATH": root, "RAY_health_check_timeout_ms": "2000"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder / "in")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "out: 6 done, 1 failed of 7 items" in result.stdout, result.stderr
    assert result.stdout.split()[-1] == "1"
    again = [line for line in manifest(tmp_path / "out").values() if line.get("warnings")]
    assert ["gone" in line["warnings"][0] for line in again] == [True]
    made, local = tree(tmp_path / "out"), tree(folder / "local")
    assert {name: data for name, data in made.items() if name != "manifest"} == {
        name: data for name, data in local.items() if name != "manifest"
    }
