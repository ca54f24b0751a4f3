"""Small networks: arguments for ours, and models of diffusers and CogVideo that stand for other people's."""

import dataclasses
import functools
import shutil

import torch

from movq_cli.model import AutoencoderConfig, Decoder3D, Encoder3D

GOOD = dict(
    ch=32,
    out_ch=3,
    ch_mult=(1, 2, 2),
    num_res_blocks=1,
    attn_resolutions=[],
    in_channels=3,
    resolution=32,
    z_channels=4,
)
"""Arguments that both networks take."""

SMALL = GOOD | dict(ch_mult=(1, 1, 2, 2), resolution=64, norm_scope="frame")
"""Arguments of networks with norms per frame."""

VAE = AutoencoderConfig(
    ch=32,
    out_ch=3,
    ch_mult=(1, 2, 2, 4),
    num_res_blocks=1,
    attn_resolutions=(),
    in_channels=3,
    resolution=256,
    z_channels=4,
)
MODEL = "zai-org/CogVideoX-2b"


def of_diffusers(**config):
    """Return an AutoencoderKLCogVideoX with every parameter random; by default its norms would all be alike."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(**config)
    for parameter in vae.parameters():
        if not parameter.is_meta:
            torch.nn.init.normal_(parameter, std=0.1)
    return vae.eval()


@functools.cache
def small_vae():
    return of_diffusers(block_out_channels=(32, 64, 64, 128), layers_per_block=1, latent_channels=4, scaling_factor=0.7)


def published_name(name, levels=4):
    """Return a tensor's name in diffusers, renamed as in CogVideo's scripts/convert_cogvideox_to_diffusers.py.

    Substrings are replaced in this order, then the decoder's levels are counted from the other end.
    """
    for old, new in {
        "block.": "resnets.",
        "down.": "down_blocks.",
        "downsample": "downsamplers.0",
        "upsample": "upsamplers.0",
        "nin_shortcut": "conv_shortcut",
        "encoder.mid.block_1": "encoder.mid_block.resnets.0",
        "encoder.mid.block_2": "encoder.mid_block.resnets.1",
        "decoder.mid.block_1": "decoder.mid_block.resnets.0",
        "decoder.mid.block_2": "decoder.mid_block.resnets.1",
    }.items():
        name = name.replace(old, new)
    parts = name.split(".")
    if parts[1] == "up":
        parts[1:3] = ["up_blocks", str(levels - 1 - int(parts[2]))]
    return ".".join(parts)


def shapes_of(config):
    """Map the name of every tensor of our two networks to its shape."""
    with torch.device("meta"):
        networks = {"encoder": Encoder3D, "decoder": Decoder3D}
        return {
            f"{part}.{name}": tuple(tensor.shape)
            for part, network in networks.items()
            for name, tensor in network(**dataclasses.asdict(config)).state_dict().items()
        }


@functools.cache
def sat_state():
    """Return the small autoencoder's tensors under CogVideo's names."""
    theirs = small_vae().state_dict()
    return {name: theirs[published_name(name)] for name in shapes_of(VAE)}


def cached(folder, source, model=MODEL, commit="0123abc", ref="main"):
    """Store `source`, a whole model, as `hf download` leaves it in the cache: blobs, and links to them.

    `ref` is the branch or tag that was asked for, None for a commit.
    """
    stored = folder / f"models--{model.replace('/', '--')}"
    (stored / "refs").mkdir(parents=True, exist_ok=True)
    if ref is not None:
        (stored / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (stored / "refs" / ref).write_text(commit)
    (stored / "blobs").mkdir(exist_ok=True)
    snapshot = stored / "snapshots" / commit / "vae"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((source / "vae").iterdir()), len(list((stored / "blobs").iterdir()))):
        shutil.copy(file, stored / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../../blobs/{number}")
    return snapshot
