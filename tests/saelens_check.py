"""SAELens and sparsify themselves open what we write, and we open what they write: the same activations, the same vectors.

SAELens 6.54 needs transformer-lens below 4, so it has an environment of its own, which this script makes where there is none:

    python tests/saelens_check.py                       # makes saelens_venv in the folder for temporary files, then checks
    python tests/saelens_check.py --python PYTHON       # with the interpreter of an environment that has SAELens
    python tests/saelens_check.py --seconds 5           # also times SAELens, the dense form and ours, in that environment
                                                        # (--json FILE: and writes the times there)

By hand the environment is

    python -m venv saelens_venv
    saelens_venv/bin/pip install torch==2.13.0
    saelens_venv/bin/pip install "sae-lens==6.54.*" "eai-sparsify==1.3.*"

A row a folder: who wrote it, who read it, and the largest absolute difference of activations and of rebuilt vectors, of size 1.
`--keep tests/data` writes the small folders that `tests/test_sae_peers.py` reads. Not run by pytest: it needs the network.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

VENV = Path(tempfile.gettempdir()) / "saelens_venv"
PACKAGES = (["torch==2.13.0"], ["sae-lens==6.54.*", "eai-sparsify==1.3.*"])  # torch first, or another build of it comes along
FORMS = ("saelens", "sparsify")
SEEN = "seen.safetensors"  # x, and what a program made of it: acts, dense, and vectors
KINDS = list(product((False, True), repeat=2))
Both = tuple[Tensor, Tensor]
Written = Iterator[tuple[Path, Callable[[Tensor], Both]]]


def noise(*shape: int, seed: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def named(**flags: bool) -> str:
    """A folder's name: the flags that are set."""
    return "-".join(name for name, on in flags.items() if on) or "plain"


# in the other environment


def inside(folder: Path, sizes: tuple[int, int, int]) -> None:
    """Read all that we wrote, and write some: each with what the program that reads or writes makes of the same vectors."""
    x = load_file(folder / "x.safetensors")["x"]
    for form, (read, write) in {"saelens": (_read_saelens, _write_saelens), "sparsify": (_read_sparsify, _write_sparsify)}.items():
        for ours in sorted((folder / "ours" / form).iterdir()):
            _see(ours / SEEN, x, read(ours))
        for theirs, compute in write(folder / "theirs" / form, sizes):
            _see(theirs / SEEN, x, compute)


def _see(file: Path, x: Tensor, compute: Callable[[Tensor], Both]) -> None:
    with torch.no_grad():
        acts, vectors = compute(x)
    save_file({"x": x, "acts": acts.contiguous(), "vectors": vectors.contiguous()}, file)


def _read_saelens(folder: Path) -> Callable[[Tensor], Both]:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    return lambda x: (sae.encode(x), sae(x))


def _write_saelens(folder: Path, sizes: tuple[int, int, int]) -> Written:
    """Random weights and biases, saved by SAELens with each of the two settings that change what is computed."""
    from sae_lens import TopKSAE, TopKSAEConfig

    d_in, d_sae, k = sizes
    for centred, rescaled in KINDS:
        path = folder / named(centred=centred, rescaled=rescaled)
        sae = TopKSAE(TopKSAEConfig(d_in, d_sae, k=k, apply_b_dec_to_input=centred, rescale_acts_by_decoder_norm=rescaled))
        _randomised(sae)
        sae.save_model(path)
        yield path, lambda x, sae=sae: (sae.encode(x), sae(x))


def _read_sparsify(folder: Path) -> Callable[[Tensor], Both]:
    from sparsify import SparseCoder

    return _coded_by(SparseCoder.load_from_disk(folder))


def _write_sparsify(folder: Path, sizes: tuple[int, int, int]) -> Written:
    """Random weights and biases, saved by sparsify; the number of features told as such or as a multiple of the width."""
    from sparsify import SparseCoder, SparseCoderConfig

    d_in, d_sae, k = sizes
    for name, size in (("latents", {"num_latents": d_sae}), ("expansion", {"expansion_factor": d_sae // d_in})):
        coder = SparseCoder(d_in, SparseCoderConfig(k=k, **size))
        _randomised(coder)
        coder.save_to_disk(folder / name)
        yield folder / name, _coded_by(coder)


def _coded_by(coder: "torch.nn.Module") -> Callable[[Tensor], Both]:
    def compute(x: Tensor) -> Both:
        values, indices, scores = coder.encode(x)
        return torch.zeros_like(scores).scatter(-1, indices, values), coder.decode(values, indices)

    return compute


@torch.no_grad()
def _randomised(module: torch.nn.Module) -> None:
    """Biases too, which start as zeros; rows of many lengths."""
    for i, (name, weights) in enumerate(sorted(module.named_parameters())):
        scale = 0.2 if weights.ndim == 1 else module.b_dec.numel() ** -0.5
        weights.copy_(scale * noise(*weights.shape, seed=100 + i))
        if name == "W_dec":
            weights *= torch.linspace(0.5, 2, len(weights))[:, None]


def timed(
    seconds: float, file: Path | None = None, d_in: int = 1152, d_hidden: int = 65_536, k: int = 128, batch: int = 64
) -> None:
    """Encoding and decoding: ours beside SAELens and the blog post's dense form, in turns; `coding.py` needs nothing but torch."""
    from sae_lens import TopKSAE, TopKSAEConfig

    here = Path(__file__).parent
    sys.path.append(str(here / "benchmarks"))
    from timing import alternating

    spec = importlib.util.spec_from_file_location("coding", here.parent / "emointerp" / "sae" / "coding.py")
    coding = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(coding)
    sae, x = TopKSAE(TopKSAEConfig(d_in, d_hidden, k=k, apply_b_dec_to_input=False)), noise(batch, d_in, seed=0)
    encoder, decoder = sae.W_enc.detach().T.contiguous(), sae.W_dec.detach()

    def ours() -> Tensor:
        return coding.sparse_decode(*coding.sparse_encode(x, encoder, sae.b_enc, k), decoder, sae.b_dec)

    def dense() -> Tensor:
        z = (x @ encoder.T).relu()
        values, indices = z.topk(k)
        return torch.zeros_like(z).scatter_(-1, indices, values) @ decoder

    roads = {"ours": ours, "SAELens": lambda: sae(x), "dense form": dense}
    with torch.no_grad():
        apart = {name: float((road() - ours()).abs().max()) for name, road in roads.items()}
        taken = alternating(roads, seconds=seconds)
    print(f"\nencode + decode, {d_in} -> {d_hidden}, top {k}, {batch} vectors")
    for name, second in taken.items():
        print(f"{name:12s} {second:.3f} s  {second / taken['ours']:.2f} times ours  difference {apart[name]:.0e}")
    if file:
        rows = [{"road": name, "seconds": second, "difference": apart[name]} for name, second in taken.items()]
        file.write_text(json.dumps(rows, indent=1) + "\n")


# in ours


def outside(
    python: Path, folder: Path, sizes: tuple[int, int, int], n: int, seconds: float | None = None, file: Path | None = None
) -> float:
    """Write, let the others read and write, read; print a table and give the largest difference in it."""
    from emointerp.sae import SAE, load_sae, save_sae

    d_in, d_hidden, k = sizes
    folder.mkdir(parents=True, exist_ok=True)
    x = noise(n, d_in, seed=1)
    save_file({"x": x}, folder / "x.safetensors")
    for form, (tied, biases) in product(FORMS, KINDS):
        encoder, decoder = (noise(d_hidden, d_in, seed=2 + i) * d_in**-0.5 for i in range(2))
        b_enc, b_dec = (0.2 * noise(size, seed=4 + size) for size in (d_hidden, d_in)) if biases else (None, None)
        save_sae(
            SAE(encoder, k, None if tied else decoder, b_enc, b_dec), folder / "ours" / form / named(tied=tied, biases=biases), form
        )
    timing = [] if seconds is None else ["--seconds", str(seconds), *(["--json", file.resolve()] if file else [])]
    subprocess.run([python, __file__, "--inside", folder, "--sizes", *map(str, sizes), *timing], check=True)
    worst = 0.0
    for path in sorted(folder.glob("*/*/*")):
        seen, sae = load_file(path / SEEN), load_sae(path)
        acts, vectors = (float((a - b).abs().max()) for a, b in ((sae.encode(x).dense(), seen["acts"]), (sae(x), seen["vectors"])))
        print(f"{path.relative_to(folder)!s:32s} activations {acts:.1e}  vectors {vectors:.1e}")
        worst = max(worst, acts, vectors)
    return worst


def environment() -> Path:
    """The interpreter of an environment with SAELens and sparsify, made where there is none."""
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        for packages in PACKAGES:
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def kept(folder: Path, data: Path) -> None:
    """Copy what the others wrote, with what they made of the vectors, to `data/saelens` and `data/sparsify`."""
    for path in folder.glob("theirs/*/*/*"):
        target = data / path.relative_to(folder / "theirs")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="interpreter of an environment that has SAELens and sparsify")
    parser.add_argument("--sizes", type=int, nargs=3, default=(192, 1536, 16), metavar=("D_IN", "D_HIDDEN", "K"))
    parser.add_argument("--seconds", type=float, help="time SAELens, the dense form and ours too, about so long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what --seconds gave there")
    parser.add_argument("--keep", type=Path, metavar="DATA", help="write small folders of theirs there")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside(given.inside, given.sizes)
        return timed(given.seconds, given.json) if given.seconds else None
    python = given.python or environment()
    with tempfile.TemporaryDirectory() as scratch:
        worst = outside(python, Path(scratch), given.sizes, n=500, seconds=given.seconds, file=given.json)
    if given.keep:
        with tempfile.TemporaryDirectory() as scratch:
            worst = max(worst, outside(python, Path(scratch), (8, 32, 4), n=6))
            kept(Path(scratch), given.keep)
    print(f"largest difference: {worst:.1e}")
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    main()
