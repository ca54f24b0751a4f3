"""The published modules' own numbers (tests/golden, see its README.md) against ours."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import movq_cli.model as model

from .helpers import published
from .helpers.tolerance import AGREE, SAME, off, rms_off

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from formula import fill, wave  # noqa: E402

# Agreement is the root mean square difference, in standard deviations of the output. The largest difference cannot be
# held to 1e-4: these networks amplify rounding a thousandfold (a group of one channel may hardly vary), so that the
# published operations in float64 are already 0.4e-4 to 2.1e-4 from the published numbers at the worst element, and
# replacing x * sigmoid(x) by silu(x) alone moves it by 2.0e-4. `python -m tests.test_goldens` prints both for every
# case. Errors that rounding would hide are held to 1e-11 in float64, against operations that print the golden numbers
# exactly.

CASES = json.loads((GOLDEN / "reference.json").read_text())
EXPECTED = load_file(GOLDEN / "reference.safetensors")


def build(case):
    module = getattr(model, case["kind"])(**case["kwargs"]).eval()
    with torch.no_grad():
        return fill(module, case["salt"])


def inputs(case):
    waves = [wave(case["shape"], case["salt"])]
    return waves + ([wave(case["temb"], case["salt"] + 0.5)] if "temb" in case else [])


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "autograd"])
@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_golden(case, grad):
    module = build(case)
    names = {k: list(v.shape) for k, v in module.state_dict().items()}
    if isinstance(case["state_dict"], int):
        assert len(names) == case["state_dict"]
    else:
        assert names == case["state_dict"]
    with torch.set_grad_enabled(grad):
        out = module(*inputs(case))
    assert list(out.shape) == case["output_shape"]
    expected = EXPECTED[case["name"]]
    got = out.detach().flatten()[:: case["output_step"]]
    assert rms_off(got, expected) < AGREE


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "Encoder3D"], ids=lambda c: c["name"])
def test_the_published_operations_are_the_golden_ones_and_ours(case):
    """Our encoder agrees with the published one to 1e-11 in float64, where rounding hides no error."""
    module, (x,) = build(case), inputs(case)
    with torch.no_grad():
        golden = published.encode(module, x).flatten()[:: case["output_step"]]
        assert rms_off(golden, EXPECTED[case["name"]]) < AGREE
        module, x = module.double(), x.double()
        theirs, ours = published.encode(module, x), module(x)
    assert off(ours, theirs) < SAME


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for case in CASES:
        expected = EXPECTED[case["name"]].double()
        module, x = build(case), inputs(case)
        fp32 = module(*x)
        with torch.enable_grad():
            fp64 = module.double()(*(v.double() for v in x)).detach()
        line = f"{case['name']:22}"
        for name, out in (("fp32", fp32), ("float64", fp64)):
            got = out.flatten()[:: case["output_step"]]
            line += f"  {name}: rms {rms_off(got, expected):.1e} largest {off(got, expected):.1e}"
        print(line)
