"""SAEs that SAELens 6.54 and sparsify 1.3 really wrote, with what they made of the same vectors: `saelens_check.py --keep`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emointerp.sae import load_sae

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "data").glob("s*/*/seen.safetensors"))


def test_there_are_folders_of_both_programs():
    assert {path.parent.name: len(list(path.parent.iterdir())) for path in FOLDERS} == {"saelens": 4, "sparsify": 2}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_other_programs_wrote_is_read_as_they_compute_it(folder):
    sae, seen = load_sae(folder), load_file(folder / "seen.safetensors")
    assert (sae.d_in, sae.d_hidden, sae.k, sae.tied) == (8, 32, 4, False)
    torch.testing.assert_close(sae.encode(seen["x"]).dense(), seen["acts"], atol=2e-6, rtol=0)
    torch.testing.assert_close(sae(seen["x"]), seen["vectors"], atol=2e-6, rtol=0)
    assert ((seen["acts"] > 0).sum(1) == 4).any() and seen["vectors"].abs().max() > 0.5
