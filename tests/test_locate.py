"""Weights as people have them on disk: variants, PyTorch folders, and a cache of other revisions and former names."""

import re
import shutil
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file

from movq_cli import EncodeOptions, MovqError, MovqWarning, decode_video, encode_video
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.checkpoints.convert import convert_checkpoint
from movq_cli.checkpoints.folders import SINGLE
from movq_cli.checkpoints.locate import locate_cached

from .helpers import clips
from .helpers.models import MODEL, cached, small_vae

pytestmark = pytest.mark.usefixtures("one_thread")

COMMITS = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save a model as diffusers does: plain, and as variants in one file and in shards."""
    folder = tmp_path_factory.mktemp("locate")
    small_vae().save_pretrained(folder / "plain" / "vae")
    small_vae().save_pretrained(folder / "fp16" / "vae", variant="fp16")
    small_vae().save_pretrained(folder / "shards" / "vae", variant="bf16", max_shard_size="5MB")
    small_vae().save_pretrained(folder / "bin" / "vae", safe_serialization=False)
    small_vae().save_pretrained(folder / "binshards" / "vae", safe_serialization=False, max_shard_size="5MB")
    return folder


@pytest.fixture(scope="module")
def digest(saved):
    return open_checkpoint(saved / "plain").digest


def opened(path):
    """Open a checkpoint and return it with the warnings that it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint = open_checkpoint(path)
    assert all(issubclass(one.category, MovqWarning) for one in caught)
    return checkpoint, [str(one.message) for one in caught]


def test_names_of_variants(saved):
    """The names that diffusers itself writes, so that those of movq are not its own invention."""
    assert (saved / "fp16" / "vae" / "diffusion_pytorch_model.fp16.safetensors").exists()
    assert (saved / "shards" / "vae" / "diffusion_pytorch_model.safetensors.index.bf16.json").exists()
    assert list((saved / "shards" / "vae").glob("diffusion_pytorch_model.bf16-00001-of-0000?.safetensors"))
    assert (saved / "bin" / "vae" / "diffusion_pytorch_model.bin").exists()
    assert (saved / "binshards" / "vae" / "diffusion_pytorch_model.bin.index.json").exists()


@pytest.mark.parametrize(
    ("kind", "variant", "name"),
    [
        ("fp16", "fp16", "diffusion_pytorch_model.fp16.safetensors"),
        ("shards", "bf16", "diffusion_pytorch_model.safetensors.index.bf16.json"),
        ("shards", "bf16", "diffusion_pytorch_model.safetensors.bf16.index.json"),
        ("shards", "bf16", "diffusion_pytorch_model.bf16.safetensors.index.json"),
    ],
)
def test_the_only_variant_is_used_and_named(saved, tmp_path, digest, kind, variant, name):
    vae = shutil.copytree(saved / kind / "vae", tmp_path / "model" / "vae")
    for index in vae.glob("*.index.*"):
        index.rename(vae / name)
    for path in (vae, vae.parent):
        checkpoint, told = opened(path)
        assert checkpoint.digest == digest
        assert told == [f"the only weights are of the variant {variant}, {name}: they are used"]
    checkpoint, told = opened(vae / name)  # who names the file knows
    assert (checkpoint.digest, told) == (digest, [])


@pytest.mark.slow
def test_eval_names_the_variant_once(saved, tmp_path, movq):
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    told = movq("eval", "a.mp4", "--weights", saved / "fp16").stderr.splitlines()
    assert [line.split(": warning:")[0] for line in told if "variant fp16" in line] == ["movq", "movq: a.mp4"]


def test_plain_weights_come_before_variants(saved, tmp_path, digest):
    vae = shutil.copytree(saved / "fp16" / "vae", tmp_path / "vae")
    shutil.copy(saved / "plain" / "vae" / SINGLE, vae)
    (vae / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    checkpoint, told = opened(vae)
    assert (checkpoint.digest, told) == (digest, [])
    assert str(vae / SINGLE) in checkpoint.files


def test_several_variants_are_named_with_the_way_out(saved, tmp_path, digest):
    vae = shutil.copytree(saved / "fp16" / "vae", tmp_path / "vae")
    shutil.copytree(saved / "shards" / "vae", vae, dirs_exist_ok=True)
    with pytest.raises(
        MovqError, match="no plain weights, but the variants bf16, fp16: name the file of one"
    ) as caught:
        open_checkpoint(vae)
    named = re.search(r"name the file of one, as (\S+)", str(caught.value))[1]
    assert open_checkpoint(named).digest == digest


def test_an_index_in_front_of_a_name_of_its_own(saved, tmp_path, monkeypatch, digest):
    monkeypatch.chdir(shutil.copytree(saved / "shards" / "vae", tmp_path / "vae"))
    assert open_checkpoint("diffusion_pytorch_model.safetensors.index.bf16.json").digest == digest


@pytest.mark.parametrize("kind", ["bin", "binshards"])
def test_a_folder_of_pytorch_files_is_converted(saved, tmp_path, digest, movq, kind):
    with pytest.raises(MovqError, match="has only PyTorch files") as caught:
        open_checkpoint(saved / kind)
    command = re.search(r"`movq (.*)`", str(caught.value))[1]
    assert command == f"weights convert {saved / kind} -o OUT.safetensors"
    assert "has only PyTorch files" in movq("info", saved / kind).stderr
    result = movq(*command.split())
    assert (result.returncode, result.stderr) == (0, "")
    made = open_checkpoint(tmp_path / "OUT.safetensors")
    assert (made.digest, made.semantics, made.name) == (digest, "diffusers", kind)
    assert made.metadata["scaling_factor"] == "0.7"


def test_a_pytorch_file_of_transformers_name_and_a_variant(saved, tmp_path, digest):
    vae = shutil.copytree(saved / "bin" / "vae", tmp_path / "vae")
    (vae / "diffusion_pytorch_model.bin").rename(vae / "pytorch_model.fp16.bin")
    with pytest.warns(MovqWarning, match=r"of the variant fp16, pytorch_model.fp16.bin: they"):
        assert convert_checkpoint(vae, tmp_path / "out.safetensors").digest == digest


def test_pytorch_files_of_another_network_hide_no_weights(saved, tmp_path, digest):
    model = shutil.copytree(saved / "plain", tmp_path / "model")
    torch.save({"x": torch.zeros(1)}, model / "pytorch_model.bin")
    assert open_checkpoint(model).digest == digest


def test_a_refusal_names_what_a_folder_has(tmp_path):
    with pytest.raises(MovqError, match=r"nor a vae folder with one; it has nothing$"):
        open_checkpoint(tmp_path)
    (tmp_path / "vae").mkdir()
    for name in ("config.json", "model.safetensors", "vae/odd.safetensors", "zzz"):
        (tmp_path / name).touch()
    with pytest.raises(MovqError, match=r"it has config.json, model.safetensors, zzz and 1 more$"):
        open_checkpoint(tmp_path)


@pytest.fixture(params=["hub", "no hub"])
def hub(request, monkeypatch, tmp_path):
    """Return an empty cache, with huggingface_hub and as if it were not installed."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    if request.param == "no hub":
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return tmp_path / "hub"


@pytest.mark.parametrize("ref", ["v1.0", "refs/pr/7", None])
def test_a_cache_without_main_is_asked_for_by_revision(hub, saved, digest, ref):
    """Neither a tag nor a commit is taken for main: other weights would change latents in silence."""
    cached(hub, saved / "plain", commit=COMMITS[0], ref=ref)
    revision = ref or COMMITS[0]
    with pytest.raises(MovqError) as caught:
        open_checkpoint(MODEL)
    assert f"no revision main of it in the Hugging Face cache {hub}, but {MODEL}@{revision}: name" in str(caught.value)
    for asked in {revision, COMMITS[0]}:
        checkpoint, told = opened(f"{MODEL}@{asked}")
        assert (checkpoint.digest, checkpoint.name, told) == (digest, f"{MODEL}@{asked}", [])
    with pytest.raises(MovqError, match=f"no revision v9 of it.*@{revision}.*hf download {MODEL} --revision v9 --incl"):
        open_checkpoint(f"{MODEL}@v9")


def test_each_revision_is_its_own_weights(hub, saved, tmp_path, digest):
    other = shutil.copytree(saved / "plain", tmp_path / "other")
    with torch.no_grad():
        changed = {name: tensor + 1 for name, tensor in small_vae().state_dict().items()}
    save_file(changed, other / "vae" / SINGLE)
    cached(hub, saved / "plain", commit=COMMITS[0])
    cached(hub, other, commit=COMMITS[1], ref="v2")
    assert open_checkpoint(MODEL).digest == open_checkpoint(f"{MODEL}@main").digest == digest
    assert open_checkpoint(f"{MODEL}@v2").digest == open_checkpoint(f"{MODEL}@{COMMITS[1]}").digest != digest
    assert open_checkpoint(f"{MODEL}@v2").metadata["source"] == f"{MODEL}@v2"
    with pytest.raises(MovqError, match=f"but {MODEL}@main, {MODEL}@v2: name"):
        open_checkpoint(f"{MODEL}@v3")


@pytest.mark.parametrize(
    ("asked", "there"), [("THUDM/CogVideoX-5b", "zai-org/CogVideoX-5b"), ("zai-org/CogVideoX-5b", "THUDM/CogVideoX-5b")]
)
def test_the_organisations_other_name(hub, saved, digest, asked, there):
    cached(hub, saved / "plain", there, COMMITS[0])
    checkpoint, told = opened(asked)
    assert (checkpoint.digest, checkpoint.name, checkpoint.metadata["source"]) == (digest, asked, there)
    assert told == [f"the Hugging Face cache has {asked} as {there}, which is used"]
    with pytest.warns(MovqWarning):
        assert locate_cached(asked).path == checkpoint.path
    with pytest.raises(MovqError, match=f"but {there}@main: name"):
        open_checkpoint(f"{asked}@v1")
    cached(hub, saved / "plain", asked, COMMITS[0])
    assert opened(asked)[1] == []


def test_a_variant_in_the_cache(hub, saved, digest):
    cached(hub, saved / "fp16", commit=COMMITS[0])
    checkpoint, told = opened(MODEL)
    assert (checkpoint.digest, len(told)) == (digest, 1)


def test_a_path_comes_before_an_id_with_a_revision(hub, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached(hub, saved / "plain", "org/model", COMMITS[0], ref="v1")
    assert open_checkpoint("org/model@v1").name == "org/model@v1"
    shutil.copytree(saved / "bin" / "vae", tmp_path / "org" / "model@v1")
    with pytest.raises(MovqError, match="has only PyTorch files"):
        open_checkpoint("org/model@v1")


@pytest.mark.parametrize("text", ["a/b@", "a/b@..", "a/b@v1/../x", "a/b@/v1", "a/b@c@d", "a@v1", "a/b@v1.safetensors"])
def test_revisions_that_cannot_be(hub, text):
    with pytest.raises(MovqError, match=f"^{re.escape(text)}: no such file or folder$"):
        open_checkpoint(text)
    assert text.endswith(".safetensors") or locate_cached(text) is None


def test_a_ref_leads_to_no_other_place(hub, saved):
    snapshot = cached(hub, saved / "plain", commit=COMMITS[0], ref="v1")
    (snapshot.parents[2] / "refs" / "v1").write_text(f"../snapshots/{COMMITS[0]}")
    with pytest.raises(MovqError, match=f"no revision v1 of it.*@{COMMITS[0]}: name"):
        open_checkpoint(f"{MODEL}@v1")


def test_decoding_finds_the_revision_that_a_header_names(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tmp_path / "hub", saved / "plain", commit=COMMITS[0], ref="v1")
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    made = encode_video(tmp_path / "a.mp4", tmp_path / "a.safetensors", EncodeOptions(weights=f"{MODEL}@v1"))
    assert made.metadata.model == f"{MODEL}@v1"
    assert decode_video(tmp_path / "a.safetensors", tmp_path / "a.npy").frames == 5
