"""Reading a batch back: shapes, draws, scales, both layouts, loaders with several workers, and batches of one shape."""

import json
import pickle
import re
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from movq_cli import (
    BucketBatchSampler,
    LatentDataset,
    MovqError,
    MovqUsageError,
    MovqWarning,
    collate,
    encode_batch,
    open_latents,
)
from movq_cli.checkpoints.checkpoint import EMBEDDED, embedded_weights
from movq_cli.headers import parse_header
from movq_cli.scaling import SCALES

from .helpers import clips
from .helpers.batches import tree

# Latents here have no scaling factor; tests of scaling factors catch warnings themselves.
pytestmark = pytest.mark.filterwarnings("ignore:.*no scaling factor:movq_cli.errors.MovqWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Encode clips of two shapes and one that fails, as files and as tars."""
    made = tmp_path_factory.mktemp("dataset")
    (made / "in").mkdir()
    for i in range(5):
        size = (9, 64, 48) if i % 2 else (14, 48, 64)
        clips.write(made / "in" / f"{i}.mp4", clips.pictures(size[0] + i, *size[1:])[i:])
        (made / "in" / f"{i}.txt").write_text(f"number {i}")
    (made / "in" / "bad.mp4").write_text("no video")
    with safe_open(embedded_weights(), "pt") as file:
        save_file(
            load_file(embedded_weights()), made / "unscaled.safetensors", file.metadata() | {"scaling_factor": ""}
        )
    for layout in ("files", "tar"):
        batch(made, made / layout, layout=layout)
    return made


def batch(folder, out, **options):
    weights = folder / "unscaled.safetensors"
    settings = {"tar_size": 50_000, "precision": "fp32", "workers": 0, "weights": weights} | options
    return encode_batch([folder / "in"], out, **settings)


@pytest.fixture(params=["files", "tar"])
def out(folder, request):
    return folder / request.param


def stored(folder, name):
    return open_latents(folder / "files" / f"{name}.safetensors").latents[0]


@pytest.mark.slow
def test_batches_made_by_workers_are_the_same_bytes(folder, tmp_path, out):
    batch(folder, tmp_path, layout=out.name, workers=2)
    assert tree(tmp_path) == tree(out)


def test_items_are_those_done_in_order_with_caption_and_row(out, folder):
    dataset = LatentDataset(out, draw=False)
    assert len(dataset) == 5
    assert dataset.left_out == {"failed": 1}
    assert "5 items in 2 shapes, 1 failed left out" in repr(dataset)
    for i, sample in enumerate(dataset):
        assert sample["row"]["id"] == f"{i}.mp4"
        assert sample["caption"] == f"number {i}"
        assert sample["latents"].dtype == torch.float32
        assert sample["latents"].equal(stored(folder, f"{i}.mp4")[:16])
    assert dataset[-1]["row"]["id"] == "4.mp4"
    with pytest.raises(IndexError):
        dataset[5]
    chosen = LatentDataset(out, where=lambda row: row["frames"] > 9)
    assert [chosen.row(i)["id"] for i in range(len(chosen))] == ["0.mp4", "2.mp4", "4.mp4"]


def test_draws_agree_with_mean_and_deviation(out, folder):
    dataset = LatentDataset(out)
    mean, logvar = stored(folder, "1.mp4").chunk(2)
    torch.manual_seed(0)
    drawn = torch.stack([dataset[1]["latents"] for _ in range(400)])
    noise = (drawn - mean) / (0.5 * logvar).exp()
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert (noise.mean(0) / (1 / 20)).abs().max() < 6
    torch.manual_seed(0)
    assert dataset[1]["latents"].equal(drawn[0])
    assert not dataset[1]["latents"].equal(drawn[0])


def test_scales_are_named(out):
    plain = LatentDataset(out, draw=False, scale=1.0)[0]["latents"]
    assert LatentDataset(out, draw=False, scale=0.5)[0]["latents"].equal(plain * 0.5)
    # The factors of CogVideo's sat/configs/cogvideox_2b.yaml and cogvideox_5b.yaml.
    for name, factor in (("cogvideox-2b", 1.15258426), ("zai-org/CogVideoX-5b", 0.7), ("CogVideoX1.5-5B-I2V", 0.7)):
        assert LatentDataset(out, draw=False, scale=name)[0]["latents"].equal(plain * factor)
    with pytest.raises(MovqUsageError, match="cogvideox-2b"):
        LatentDataset(out, scale="cogvideox-9b")
    for scale in (0, -1, float("nan"), float("inf")):
        with pytest.raises(MovqUsageError, match="above 0"):
            LatentDataset(out, scale=scale)
    assert all(name == name.lower() for name in SCALES)
    assert LatentDataset(out, dtype=torch.bfloat16)[0]["latents"].dtype == torch.bfloat16


def warned(folder, **options):
    """Return the dataset, and the warnings of making it, of reading it, and of reading a copy as workers have it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = LatentDataset(folder, draw=False, **options)
        for copy in (dataset, pickle.loads(pickle.dumps(dataset))):
            list(copy)
    assert all(isinstance(warning.message, MovqWarning) and warning.filename == __file__ for warning in caught)
    return dataset, [str(warning.message) for warning in caught]


@pytest.fixture
def headers_say(monkeypatch):
    """Change the metadata in latents' headers: `headers_say(scaling_factor="0.7")`, or by a function of the old."""

    def say(change=lambda said: {}, **metadata):
        def parse(data):
            header = parse_header(data)
            return replace(header, metadata=header.metadata | metadata | change(header.metadata))

        monkeypatch.setattr("movq_cli.reading.parse_header", parse)

    return say


def test_the_default_scale_is_that_of_the_weights_by_way_of_the_header(folder, make_weights, tmp_path):
    weights = make_weights(metadata={"scaling_factor": "0.70", "shift_factor": "-2"})
    for layout in ("files", "tar"):
        encode_batch([folder / "in" / "1.mp4"], tmp_path / "out", weights=weights, layout=layout, workers=0)
        plain, said = warned(tmp_path / "out", scale=1.0)
        assert said == []
        dataset, said = warned(tmp_path / "out")
        assert said == []
        assert dataset[0]["latents"].equal((plain[0]["latents"] + 2) * 0.7)
        assert dataset.slice(0, 1, 2)["latents"].equal((plain.slice(0, 1, 2)["latents"] + 2) * 0.7)
        assert (plain.scale, dataset.scale) == (1.0, None)


def test_draws_are_scaled_too(out, headers_say):
    headers_say(scaling_factor="0.7", shift_factor="")
    torch.manual_seed(0)
    drawn = LatentDataset(out)[0]["latents"]
    torch.manual_seed(0)
    assert drawn.equal(LatentDataset(out, scale=0.7)[0]["latents"])


@pytest.mark.parametrize("factor", ["", "much", "0", "-1", "nan", "inf", 10**400, None])
def test_latents_without_a_scaling_factor_warn_once_and_stay_as_they_are(out, headers_say, factor):
    headers_say(scaling_factor=factor, shift_factor="3")
    plain, said = warned(out, scale=1.0)
    assert said == []
    dataset, said = warned(out)
    assert said == [
        f"{out}: the latents made with {EMBEDDED} have no scaling factor and are left as they are; pass "
        'scale="cogvideox-5b" (0.7), the name of another model, a number, or scale=1.0 to keep them so'
    ]
    assert dataset[0]["latents"].equal(plain[0]["latents"])
    assert warned(out, scale="cogvideox-5b")[1] == []  # no factor contradicts the name


@pytest.mark.parametrize("shift", ["0", "much", "nan", None])
def test_a_shift_that_is_none_changes_nothing(out, headers_say, shift):
    headers_say(scaling_factor="0.7", shift_factor=shift)
    assert warned(out)[0][0]["latents"].equal(warned(out, scale=0.7)[0][0]["latents"])


def test_a_name_that_contradicts_the_header_warns_and_wins(out, headers_say):
    headers_say(scaling_factor="1.15258426")
    plain, _ = warned(out, scale=1.0)
    dataset, said = warned(out, scale="zai-org/CogVideoX-5b")
    assert said == [
        f"{out}: the latents made with {EMBEDDED} have the scaling factor 1.15258426, but "
        "scale='zai-org/CogVideoX-5b' means 0.7, which is used; leave scale out to use theirs, or pass scale=0.7"
    ]
    assert dataset[0]["latents"].equal(plain[0]["latents"] * 0.7)
    assert warned(out, scale="cogvideox-2b")[1] == []
    assert warned(out, scale=0.7)[1] == []


def test_latents_of_several_weights_have_a_scale_each(out, headers_say, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    lines = [json.loads(text) for text in (tmp_path / "manifest.jsonl").open()]
    other = next(line for line in lines if line["id"] == "1.mp4")
    first, other["weights_digest"] = other["weights_digest"], "b" * 64
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def say(said):
        is_other = said["source_sha256"] == other["source_sha256"]
        return {
            "scaling_factor": "" if is_other else "0.7",
            "weights_digest": "b" * 64 if is_other else first,
            "model": "ot\nher" if is_other else "first",
        }

    headers_say(say)
    plain, _ = warned(tmp_path, scale=1.0)
    dataset, said = warned(tmp_path)
    assert len(said) == 1
    assert "the latents made with ot\\nher have no scaling factor" in said[0]
    assert dataset[0]["latents"].equal(plain[0]["latents"] * 0.7)
    assert dataset[1]["latents"].equal(plain[1]["latents"])
    assert warned(tmp_path, where=lambda row: row["id"] != "1.mp4")[1] == []


def test_the_same_weights_have_the_same_scale_though_some_headers_lack_it(out, headers_say):
    """A factor may be added to the weights' file between two runs of a batch; the second run encodes nothing again."""
    plain, _ = warned(out, scale=1.0)
    source = plain.row(0)["source_sha256"]
    headers_say(lambda said: {"scaling_factor": "0.7" if said["source_sha256"] == source else ""})
    dataset, said = warned(out)
    assert said == []
    for i in range(len(dataset)):
        assert dataset[i]["latents"].equal(plain[i]["latents"] * 0.7)


def test_files_that_cannot_be_read_are_passed_over_when_scales_are_looked_up(folder, tmp_path):
    for layout in ("files", "tar"):
        shutil.copytree(folder / layout, tmp_path / layout)
    (tmp_path / "files" / "0.mp4.safetensors").write_bytes(b"\xff" * 100)
    for tar in (tmp_path / "tar").glob("*.tar"):
        tar.unlink()
    for layout in ("files", "tar"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = LatentDataset(tmp_path / layout)
        assert caught == []
        with pytest.raises(MovqError):
            dataset[0]


def test_slices_in_time_say_what_latents_stand_for(out):
    dataset = LatentDataset(out, draw=False)
    whole = dataset[0]
    assert whole["frames_per_latent"].tolist() == [1, 4, 4, 4, 4]
    part = dataset.slice(0, 0, 3)
    assert part["latents"].equal(whole["latents"][:, :3])
    assert part["frames_per_latent"].tolist() == [1, 4, 4]
    part = dataset.slice(0, 2, 4)
    assert part["latents"].equal(whole["latents"][:, 2:4])
    assert part["frames_per_latent"].tolist() == [4, 4]
    assert dataset.slice(0, -2)["frames_per_latent"].tolist() == [4, 4]
    assert dataset.slice(0, -5)["frames_per_latent"].tolist() == [1, 4, 4, 4, 4]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_loader_with_workers_and_batches_of_one_shape(out, folder, context):
    dataset = LatentDataset(out, scale="cogvideox-5b")
    torch.manual_seed(1)
    sampler = BucketBatchSampler(dataset, 2)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=2,
        collate_fn=collate,
        multiprocessing_context=context,
        persistent_workers=True,
    )
    epochs = []
    for _ in range(2):
        drawn = {}
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        for batch in batches:
            assert batch["latents"].shape[1:] in {(16, 3, 6, 8), (16, 5, 8, 6)}
            assert batch["latents"].shape[0] == len(batch["caption"]) == len(batch["row"]) <= 2
            for latents, row in zip(batch["latents"], batch["row"], strict=True):
                drawn[row["id"]] = latents
        assert set(drawn) == {f"{i}.mp4" for i in range(5)}
        epochs.append(drawn)
    for name in epochs[0]:
        mean, logvar = stored(folder, name).chunk(2)
        first, second = ((epoch[name] / 0.7 - mean) / (0.5 * logvar).exp() for epoch in epochs)
        assert not first.equal(second)
        assert abs(first.mean()) < 0.1
        assert abs(first.std() - 1) < 0.1
        assert abs((first * second).mean()) < 0.1  # independent draws


def test_samples_of_several_shapes_are_no_batch(out):
    dataset = LatentDataset(out)
    with pytest.raises(MovqUsageError, match="use a BucketBatchSampler"):
        collate([dataset[0], dataset[1]])


def test_what_was_saved_as_a_draw_or_mean_stays_so(folder, tmp_path):
    for save in ("mean", "sample"):
        encode_batch([folder / "in" / "1.mp4"], tmp_path / save, save=save, store_dtype="bf16", workers=0)
        dataset = LatentDataset(tmp_path / save, scale=1.0)
        assert dataset[0]["latents"].equal(open_latents(tmp_path / save / "1.mp4.safetensors").latents[0].float())
        assert dataset[0]["latents"].equal(dataset[0]["latents"])
        assert dataset[0]["latents"].shape == (16, 3, 6, 8)


def test_what_is_not_as_the_manifest_says_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    files, tar = LatentDataset(tmp_path / "files"), LatentDataset(tmp_path / "tar")
    path = tmp_path / "files" / "0.mp4.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    shutil.copy(tmp_path / "files" / "3.mp4.safetensors", tmp_path / "files" / "1.mp4.safetensors")
    (tmp_path / "files" / "2.mp4.safetensors").unlink()
    (tmp_path / "files" / "3.mp4.safetensors").write_bytes(b"\xff" * files.row(3)["bytes"])
    reasons = ("bytes where the manifest says", "(other latents)", "no such file", "is not what the manifest says")
    for i, reason in enumerate(reasons):
        with pytest.raises(MovqError, match=rf"{i}\.mp4\.safetensors: .*{re.escape(reason)}"):
            files[i]
    index = json.loads((tmp_path / "tar" / "latents-00000.index.json").read_text())
    index["bytes"] -= 512  # the index of an older tar
    index["members"] = [member | {"offset": member["offset"] - 512} for member in index["members"]]
    for text in (json.dumps(index), "{}", "[" * 100_000):
        (tmp_path / "tar" / "latents-00000.index.json").write_text(text)
        mean = LatentDataset(tmp_path / "tar", draw=False)[0]["latents"]
        assert mean.equal(stored(folder, "0.mp4")[:16])  # read from the tar itself
    last = tar.row(-1)["output"]
    (tmp_path / "tar" / last).write_bytes(b"no tar")
    with pytest.raises(MovqError, match=rf"{last}: is not a tar of latents"):
        tar[-1]
    with pytest.raises(MovqError, match=r"has no manifest\.jsonl: it is not a folder that batch-encode made"):
        LatentDataset(tmp_path)
    with open(tmp_path / "files" / "manifest.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(MovqError, match="has changed since"):
        pickle.loads(pickle.dumps(files))
    shutil.copy(tmp_path / "tar" / "manifest.jsonl", tmp_path / "tar" / "manifest.0-of-2.jsonl")
    with pytest.raises(MovqError, match="merge"):
        LatentDataset(tmp_path / "tar")


def test_of_two_lines_the_later_holds_and_orphans_are_left_out(folder, tmp_path):
    shutil.copytree(folder / "files", tmp_path, dirs_exist_ok=True)
    lines = [json.loads(text) for text in (tmp_path / "manifest.jsonl").open()]
    with open(tmp_path / "manifest.jsonl", "a") as file:
        file.write(json.dumps(lines[0] | {"caption": "newer"}, ensure_ascii=False) + "\n")
        file.write(json.dumps(lines[1] | {"orphan": True}) + "\n")
        file.write('{"id": "torn')
    dataset = LatentDataset(tmp_path)
    assert [dataset.row(i)["id"] for i in range(len(dataset))] == ["0.mp4", "2.mp4", "3.mp4", "4.mp4"]
    assert dataset[0]["caption"] == "newer"
    assert dataset.left_out == {"orphan": 1, "failed": 1}
