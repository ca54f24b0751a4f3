"""The quantisers against the published modules' own numbers (tests/golden), and frame by frame."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from movq_cli import MovqError
from movq_cli.model import FSQ, LFQ, VectorQuantizer2, quantizers

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from formula import fill, wave  # noqa: E402

CASES = json.loads((GOLDEN / "quantizers.json").read_text())
EXPECTED = load_file(GOLDEN / "quantizers.safetensors")


def filled(module, salt):
    """Fill a module by the formula; whole numbers keep their values."""
    whole = {name: value.clone() for name, value in module.state_dict().items() if not value.is_floating_point()}
    with torch.no_grad():
        fill(module, salt)
    module.load_state_dict(module.state_dict() | whole)
    return module


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden(case):
    module = filled(getattr(quantizers, case["kind"])(**case["kwargs"]), case["salt"]).train(case["train"])
    assert {name: list(value.shape) for name, value in module.state_dict().items()} == case["state_dict"]
    z = (case["gain"] * wave(case["shape"], case["salt"])).requires_grad_()
    made = module(z)
    expected = {what: EXPECTED[f"{case['name']}.{what}"] for what in ("quantized", "indices", "loss", "gradient")}
    assert torch.equal(made.indices, expected["indices"])
    torch.testing.assert_close(made.quantised, expected["quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(made.loss, expected["loss"][0], rtol=0, atol=1e-5)
    total = (made.quantised * wave(made.quantised.shape, 9.0)).sum() + made.loss
    if total.requires_grad:
        total.backward()
    assert (z.grad is None) == (not expected["gradient"].numel())
    if z.grad is not None:
        torch.testing.assert_close(z.grad, expected["gradient"], rtol=0, atol=1e-5)


def test_of_equally_near_entries_the_first_is_taken():
    quantizer = VectorQuantizer2(4, 2, 0.25)
    quantizer.load_state_dict({"embedding.weight": torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])})
    assert quantizer(torch.zeros(1, 2, 1, 1, 3)).indices.tolist() == [[[[1, 1, 1]]]]
    assert quantizer(torch.tensor([-0.5, 0.0]).view(1, 2, 1, 1, 1)).indices.item() == 3


MODULES = [
    lambda: VectorQuantizer2(97, 6, 0.25),
    lambda: FSQ([8, 6, 5], dim=6),
    lambda: FSQ([5, 5, 5], num_codebooks=2),
    lambda: LFQ(dim=6),
    lambda: LFQ(dim=6, codebook_size=8, num_codebooks=3, codebook_scale=0.5),
]


@pytest.mark.parametrize(
    "make", MODULES, ids=["vq", "fsq projected", "two codebooks of fsq", "lfq", "three codebooks of lfq"]
)
def test_frames_are_coded_one_by_one_and_back(make):
    torch.manual_seed(0)
    quantizer = make().eval()
    z = torch.randn(2, 6, 5, 7, 9)
    made, indices = quantizer(z), quantizer.encode(z)
    assert 0 <= int(indices.min()) <= int(indices.max()) < quantizer.codes
    assert indices.shape[:4] == (2, 5, 7, 9)
    assert torch.equal(indices, made.indices)
    for pieces in ([1, 4], [2, 2, 1], [1] * 5):
        assert torch.equal(torch.cat([quantizer.encode(part) for part in z.split(pieces, 2)], 1), indices)
    torch.testing.assert_close(quantizer.decode(indices), made.quantised, rtol=0, atol=1e-6)
    assert quantizer(z.bfloat16()).quantised.dtype == torch.bfloat16


def test_many_levels_have_codes_of_their_own():
    """Codes above 2^24, which fp32 does not hold."""
    torch.manual_seed(0)
    quantizer = FSQ([8] * 9).eval()
    made = quantizer(torch.randn(1, 9, 2, 8, 8) * 2)
    assert int(made.indices.max()) > 2**24
    assert torch.equal(quantizer.decode(made.indices), made.quantised)


def test_what_cannot_be():
    with pytest.raises(MovqError, match="remap reads a file"):
        VectorQuantizer2(8, 4, 0.25, remap="used.npy")
    with pytest.raises(MovqError, match="a power of 2: got 6 and 12"):
        LFQ(dim=6, codebook_size=12)
    with pytest.raises(MovqError, match="got None and None"):
        LFQ()


def test_a_part_of_the_samples_is_enough_for_the_entropies():
    torch.manual_seed(0)
    z = torch.randn(1, 4, 2, 16, 16)
    whole, part = (LFQ(dim=4, frac_per_sample_entropy=share)(z).loss for share in (1.0, 0.5))
    assert 0 < abs(float(whole - part)) < 0.1 * abs(float(whole))
