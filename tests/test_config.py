"""Configurations: what is refused and why, what causes a warning, what the factors are."""

import warnings

import pytest

from movq_cli import MovqWarning
from movq_cli.model import AutoencoderConfig, Decoder3D, Encoder3D

from .helpers.models import GOOD


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"temporal_compress_times": 3}, "power of two"),
        ({"temporal_compress_times": 0}, "power of two"),
        ({"temporal_compress_times": 8}, "needs 3 downsampling levels"),
        ({"ch": 48}, "multiple of 32"),
        ({"pad_mode": "replicate"}, "pad_mode must be one of first, constant, reflect"),
        ({"norm_scope": "clip"}, "norm_scope"),
        ({"ch_mult": ()}, "0 levels; there must be 1 to 10"),
        ({"ch_mult": (1,) * 11}, "11 levels; there must be 1 to 10"),
        ({"z_channels": 0}, "z_channels"),
        ({"add_conv": True}, "add_conv"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        AutoencoderConfig(**GOOD | change)
    with pytest.raises(ValueError, match=reason):
        (Decoder3D if "add_conv" in change else Encoder3D)(**GOOD | change)


def test_unknown_keys_are_accepted_and_named():
    with pytest.warns(MovqWarning, match="temporal_compression_times"):
        Encoder3D(**GOOD, temporal_compression_times=2)


def test_the_other_networks_keys_are_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Encoder3D(**GOOD, zq_ch=4, give_pre_end=False, add_conv=False)
        Decoder3D(**GOOD, double_z=True)


def test_factors_and_shapes():
    config = AutoencoderConfig(**GOOD | {"ch_mult": (1, 2, 4, 4), "z_channels": 16})
    assert (config.temporal_factor, config.spatial_factor) == (4, 8)
    assert config.latent_shape(49, 480, 720) == (1, 32, 13, 60, 90)
    assert [config.latent_frames(t) for t in (1, 2, 4, 5, 16, 17)] == [1, 1, 1, 2, 4, 5]


def test_identity_ignores_what_cannot_change_a_latent():
    same = AutoencoderConfig(**GOOD | {"dropout": 0.5, "resolution": 64, "zq_ch": 4})
    assert same.identity_json() == AutoencoderConfig(**GOOD).identity_json()
    attention = GOOD | {"attn_resolutions": [16]}
    larger = AutoencoderConfig(**attention | {"resolution": 64})
    assert AutoencoderConfig(**attention).identity_json() != larger.identity_json()
    assert AutoencoderConfig(**GOOD | {"norm_scope": "frame"}).identity_json() != same.identity_json()
