"""Seconds and peak memory of the course's work on models with the exact shapes of LLaVA-1.5-7B, LLaVA-1.6-13B and Qwen2-VL-7B.

    python tests/benchmarks/real_sizes.py [--model NAME ...] [--device cuda] [--layers 2 4] [--only TASK ...] [--json FILE]

Weights are random and in bfloat16: neither seconds nor bytes hang on them. Nothing is fetched; a model is written to a temporary
folder and loaded from there. On a GPU it has all of its layers. Without one it has few: `--layers A B` makes three models, with
A and A language and tower layers, B and A, and A and B, and a fourth row, `extrapolated`, is the straight line through the three at
the full depths (without the third, at the tower's small one). What would take longer with fewer layers (a head map has a branch for
each head) keeps the full model's number. Peers that do a forward for each head do a few of them, stories are short and noisy copies
few on a processor, and seconds are scaled to all: `timed` says how many of how many.

A row that the file already holds is not measured again, so a run that was stopped goes on. `planned GB` is what `planned` would
have said of the very model that was measured, beside its weights as `peak GB` is.
"""

import argparse
import copy
import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import cases
import peers
import provenance
import torch
import transformers as hf
from sae_cases import SaeSubject
from subjects import Subject
from timing import MIB, peak_mib

sys.path.append(str(Path(__file__).parents[1]))

from tiny_families import IMAGE_MARK, LLAVA_CHAT, QWEN_CHAT, QWEN_MARKS, new_tokenizer  # noqa: E402

import emointerp  # noqa: E402
from emointerp.files import whole  # noqa: E402
from emointerp.models import VLM, expect, load_tower, machine  # noqa: E402
from emointerp.models.budget import visual_tokens  # noqa: E402
from emointerp.models.plan import ALPHAS, AT_ONCE, COPIES, FEATURES, WIDTH, tasks  # noqa: E402
from emointerp.models.processors import pictures_only  # noqa: E402
from emointerp.models.published import CONFIGS, OTHERS  # noqa: E402
from emointerp.sae import SAE  # noqa: E402
from emointerp.saliency import answer, smoothed_gradient, toward  # noqa: E402
from emointerp.tracing import SetHead, collect, run  # noqa: E402
from emointerp.tracing.metrics import as_metric  # noqa: E402

KEY = ("model", "language layers", "tower layers", "task", "road")
GB = 1e9
LOAD, SAE_TASK, OURS = "load", "SAE", "emointerp"
HEAD_PEERS = ("TransformerLens", "nnsight, a trace a head", "hooks, a forward a head")


# models


def _squares(tokenizer: Any, kind: type, images: Any) -> Any:
    return kind(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )  # fmt: skip


def _llava() -> tuple[dict, Any]:
    tokenizer = new_tokenizer(IMAGE_MARK)
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return {"image_token_index": tokenizer.image_token_id}, _squares(tokenizer, hf.LlavaProcessor, images)


def _llava_next() -> tuple[dict, Any]:
    tokenizer = new_tokenizer(IMAGE_MARK)
    images = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return {"image_token_index": tokenizer.image_token_id}, _squares(tokenizer, hf.LlavaNextProcessor, images)


def _qwen() -> tuple[dict, Any]:
    tokenizer = new_tokenizer(QWEN_MARKS)
    ids = {"image_token_id": tokenizer.image_token_id, "video_token_id": tokenizer.video_token_id}
    ids |= {"vision_start_token_id": tokenizer.vision_bos_token_id, "vision_end_token_id": tokenizer.vision_eos_token_id}
    return ids, pictures_only(hf.Qwen2VLProcessor)(hf.Qwen2VLImageProcessorPil(), tokenizer, chat_template=QWEN_CHAT)


@dataclass(frozen=True)
class Shape:
    """A model's published sizes, the maker of its processor and of the ids of its marks, and the side of the pictures it reads."""

    name: str
    config: dict[str, Any] = field(repr=False)
    made: Callable[[], tuple[dict, Any]] = field(repr=False)
    side: int
    tower: str  # how its configuration calls the number of the tower's layers

    @property
    def full(self) -> tuple[int, int]:
        """Language and tower layers of the real one."""
        return self.config["text_config"]["num_hidden_layers"], self.config["vision_config"][self.tower]

    def built(self, layers: tuple[int, int], device: str) -> tuple[torch.nn.Module, Any]:
        """A model with random weights and so many layers, and its processor."""
        ids, processor = self.made()
        sizes = copy.deepcopy(self.config) | ids
        sizes["text_config"] |= {"num_hidden_layers": layers[0], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        sizes["vision_config"][self.tower] = layers[1]
        if "qwen" in self.config["model_type"]:
            rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
            sizes["text_config"]["rope_parameters"] = rope
        with torch.device(device):
            config = hf.AutoConfig.for_model(**sizes)
            model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2, do_sample=False)
        return model, processor


SHAPES = {
    "llava-1.5-7b": Shape("LLaVA-1.5-7B", CONFIGS["llava-hf/llava-1.5-7b-hf"], _llava, 336, "num_hidden_layers"),
    "llava-1.6-13b": Shape("LLaVA-1.6-13B", OTHERS["llava-hf/llava-v1.6-vicuna-13b-hf"], _llava_next, 672, "num_hidden_layers"),
    "qwen2-vl-7b": Shape("Qwen2-VL-7B", CONFIGS["Qwen/Qwen2-VL-7B-Instruct"], _qwen, 672, "depth"),
}


@dataclass(frozen=True)
class Real(Subject):
    """A model in hand, the depths of the real one, and how much is timed: answers of `tokens`, `copies` of SmoothGrad."""

    full: tuple[int, int] = (0, 0)
    copies: int = COPIES

    @cached_property
    def plain(self) -> VLM:
        """The same weights in modules of their own, because two copies of them would not fit."""
        model = copy.deepcopy(self.vlm.model, {id(t): t for t in (*self.vlm.model.parameters(), *self.vlm.model.buffers())})
        return VLM(self.vlm.name, model, self.vlm.processor, self.vlm.instruction)

    @cached_property
    def planned(self) -> dict[str, float]:
        """What would have been planned for this model and its prompt, in bytes beside the weights, by the name's beginning."""
        n = len(self.prompt.visual)
        budget = expect(self.vlm, visual=n, text=len(self.prompt) - n, new=self.tokens)
        return {name: task.memory - budget.weights for name, task in tasks(budget).items()}


# what is measured: of each road a call, and how much of the task it does

Roads = dict[str, tuple[Callable[[], Any], int, int]]  # a call, and how many of how many cells it does


def _cells(subject: Real) -> dict[int, SetHead]:
    """A head of the donor's for each head that the full model has; with fewer layers, each of these comes several times."""
    a, values = subject.vlm.anatomy, collect(subject.vlm, subject._prompt(1), ["heads"], positions="last").heads[:, :, 0]
    places = [(i % a.n_layers, h) for i in range(subject.full[0]) for h in range(a.n_heads)]
    return {i: SetHead(layer, head, values[layer, head]) for i, (layer, head) in enumerate(places)}


def _few_logits(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, :8]


def _head_map(subject: Real) -> Roads:
    a = subject.vlm.anatomy
    total = subject.full[0] * a.n_heads
    some = {(e.layer, e.head): e for e in list(_cells(subject).values())[:: a.n_heads + 1][: subject.sampled]}
    return {
        OURS: (lambda: cases._swept(subject, _cells(subject), metric=_few_logits), total, total),
        "TransformerLens": (partial(peers.lens_head_map, subject, some), len(some), total),
        "nnsight, a trace a head": (partial(peers.nnsight_loop, subject, some), len(some), total),
        "hooks, a forward a head": (partial(peers.hooks_loop, subject, some), len(some), total),
    }


def _stories(subject: Real) -> Roads:
    total, layers = ALPHAS * subject.full[0], subject.vlm.anatomy.n_layers
    edits = {i: subject.steering(i, i % layers, 0.5 + 0.1 * (i // layers)) for i in range(total)}
    return {OURS: (partial(cases._swept, subject, edits, max_new_tokens=subject.tokens), total, total)}


def _one(work: Callable[[], Any]) -> Roads:
    return {OURS: (work, 1, 1)}


def _collecting(subject: Real, sites: tuple[str, ...]) -> Roads:
    return _one(lambda: collect(subject.vlm, subject.prompt, sites))


def _smoothing(subject: Real, of: str) -> Roads:
    tower = load_tower(subject.vlm)
    first = as_metric(lambda logits: logits[:, 0].float())
    target = toward(tower, torch.ones(tower.d)) if of == "tower" else answer(subject.vlm, subject.prompt, first)
    x, n = target.pixels([subject.prompt.image]), subject.copies if of == "tower" else max(1, subject.copies // 2)
    return {OURS: (lambda: smoothed_gradient(target, x, n, batch=n), n, COPIES)}


TASKS: dict[str, Callable[[Real], Roads]] = {
    "read a prompt": lambda subject: _one(lambda: run(subject.vlm, subject.prompt)),
    "collect heads": partial(_collecting, sites=("heads",)),
    "collect all sites": partial(_collecting, sites=("residual", "heads", "neurons", "attention")),
    "head map": _head_map,
    "alpha x layer": _stories,
    "VEENA": lambda subject: _one(cases.veena_generation(subject).ours),
    "SmoothGrad of the tower": partial(_smoothing, of="tower"),
    "SmoothGrad of an answer": partial(_smoothing, of="answer"),
}


# measuring


def weighed(work: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """What a call gives, its seconds, and the bytes that it took at most beside what was there; on a GPU the median of three."""
    kept: dict[str, Any] = {"seconds": []}

    def timed() -> None:
        start = perf_counter()
        kept["value"] = work()
        if device == "cuda":
            torch.cuda.synchronize()
        kept["seconds"].append(perf_counter() - start)

    if device != "cuda":
        peak = (peak_mib(timed) or float("nan")) * MIB
        return kept["value"], kept["seconds"][0], peak
    timed()  # warms up
    kept.pop("value")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, kept["seconds"] = torch.cuda.memory_allocated(), []
    for _ in range(3):
        timed()
    return kept["value"], median(kept["seconds"]), torch.cuda.max_memory_allocated() - before


def measured(shape: Shape, layers: tuple[int, int], given: argparse.Namespace, done: set[tuple]) -> Iterator[dict[str, Any]]:
    """Rows of one model, without those that are there."""
    about = {"model": shape.name, "language layers": layers[0], "tower layers": layers[1]}
    roads = {LOAD: [OURS]} | {task: [OURS] for task in TASKS} | {"head map": [OURS, *HEAD_PEERS]}
    missing = [(t, r) for t, some in roads.items() if t in given.only for r in some if (*about.values(), t, r) not in done]
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="real_sizes_") as folder:
        model, processor = shape.built(layers, given.device)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        del model
        gc.collect()
        vlm, seconds, peak = weighed(lambda: _loaded(folder, given.device), given.device)
        if given.device != "cuda":
            settle(vlm.model)
        limits = {"tokens": given.tokens, "sampled": given.sampled, "copies": given.copies}
        subject = Real(shape.name, vlm, side=shape.side, full=shape.full, **limits)
        about["tokens"] = len(subject.prompt)
        weights = sum(p.nbytes for p in vlm.model.parameters())
        if (LOAD, OURS) in missing:
            yield about | _row(LOAD, OURS, 1, 1, seconds, peak, weights)
        subject.plain, subject.donor  # noqa: B018 - made before anything is timed; the donor's forward warms up
        for task in dict.fromkeys(task for task, _ in missing if task != LOAD):
            expected = next(n for name, n in subject.planned.items() if name.startswith(task))
            for road, (work, some, total) in TASKS[task](subject).items():
                if (task, road) in missing:
                    _, seconds, peak = weighed(work, given.device)
                    expected = expected / AT_ONCE * some if "Smooth" in task else expected
                    yield about | _row(task, road, some, total, seconds, peak, expected if road == OURS else None)


def _loaded(folder: str, device: str) -> VLM:
    """A model with all of its weights in memory: on a processor they are pages of the file, which come when they are read."""
    vlm = emointerp.load(folder, dtype="bfloat16", device=device)
    for weights in vlm.model.parameters():
        weights.detach().flatten()[:: 2**10].sum()
    return vlm


def settle(model: torch.nn.Module) -> None:
    """Weights in memory of their own: the system takes pages of a file away and brings them back, which looks like growth."""
    for weights in model.parameters():
        weights.data = weights.data.clone()


def give_back() -> None:
    """Make the C library give back all that is freed in pieces of a MiB or more, so that the process's size is what is in use."""
    try:
        ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD of glibc
    except (OSError, AttributeError):  # another system's
        pass


def _row(task: str, road: str, some: int, total: int, seconds: float, peak: float, expected: float | None) -> dict[str, Any]:
    row = {"task": task, "road": road, "timed": f"{some:,} of {total:,}", "seconds": seconds * total / some, "peak GB": peak / GB}
    return row | {"planned GB": expected and expected / GB, "extrapolated": False}


def sae_row(device: str) -> dict[str, Any]:
    """The SAE of 262,144 features in float32: the patches of a picture encoded, 8,192 features at a time, and decoded."""
    value, x = SAE.random(WIDTH, FEATURES, 128).to(device), SaeSubject(FEATURES, WIDTH, batch=576).x.to(device)
    matrices = 2 * WIDTH * FEATURES * 4
    _, seconds, peak = weighed(lambda: value.decode(value.encode(x, chunk=8192)), device)
    about = {"model": f"SAE {WIDTH} -> {FEATURES:,}", "language layers": 0, "tower layers": 0, "tokens": 576}
    return about | _row(SAE_TASK, OURS, 1, 1, seconds, peak + matrices, matrices + 2 * 576 * 8192 * 4)


# the whole model, from three parts of it


def extrapolated(shape: Shape, rows: list[dict[str, Any]], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the whole model: the straight line through those of three small ones, in language and in tower layers.

    Where the one with more tower layers is missing, the tower stays as small as it was measured.
    """
    mine = [row for row in rows if row["model"] == shape.name and not row["extrapolated"]]
    depths = sorted({row["language layers"] for row in mine})
    if len(depths) != 2:
        return []
    (few, more), found = depths, {}
    for row in mine:
        found.setdefault((row["task"], row["road"]), {})[row["language layers"], row["tower layers"]] = row
    planned = {tower: planned_for(shape, tower, mine[0]["tokens"], given) for tower in (few, shape.full[1])}
    corners = [[at.get(corner) for corner in ((few, few), (more, few), (few, more))] for at in found.values()]
    return [_line(shape, *three, planned) for three in corners if three[0] and three[1]]


def _line(shape: Shape, corner: dict, language: dict, tower: dict | None, planned: dict[int, dict]) -> dict[str, Any]:
    """One task of the whole model. A slope below 0 is noise, and counts as 0."""
    row, step = dict(corner), language["language layers"] - corner["language layers"]
    for name, other, full in zip(("language layers", "tower layers"), (language, tower), shape.full, strict=True):
        for what in ("seconds", "peak GB") if other else ():
            row[what] += max(0.0, (other[what] - corner[what]) / step) * (full - corner[name])
        row[name] = full if other else corner[name]
    beside = planned[row["tower layers"]]
    planned_bytes, seconds = next((value for name, value in beside.items() if name.startswith(row["task"])), (None, None))
    if corner["road"] == OURS and planned_bytes is not None:
        some = int(corner["timed"].split()[0].replace(",", ""))
        row["planned GB"] = planned_bytes / GB * (some / AT_ONCE if "Smooth" in row["task"] else 1)
        row["planned s"] = seconds
    return row | {"extrapolated": True}


def planned_for(shape: Shape, tower: int, tokens: int, given: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """What would be planned for a model with all language layers, here: bytes beside the weights, and seconds, best to worst."""
    sizes = copy.deepcopy(shape.config)
    sizes["vision_config"][shape.tower] = tower
    config = hf.AutoConfig.for_model(**sizes)
    visual = visual_tokens(config)
    budget, there = expect(config, visual=visual, text=tokens - visual, new=given.tokens), machine("cpu")
    found = {}
    for name, task in tasks(budget).items():
        low, high = (task.seconds(there.gpu, share, end) for end, share in enumerate(there.shares))
        found[name] = (task.memory - (0 if name == LOAD else budget.weights), f"{low:.3g} - {high:.3g}")
    return found


# the command line


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, keep each row at once, print the table."""
    cuda = torch.cuda.is_available()
    names = [LOAD, *TASKS, SAE_TASK]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="by default a GPU, if there is one")
    parser.add_argument(
        "--layers", nargs=2, type=int, default=None if cuda else (2, 4), metavar="N", help="by default all on a GPU"
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="TASK", help=", ".join(names))
    parser.add_argument("--tokens", type=int, default=64 if cuda else 4, help="of a story")
    parser.add_argument("--copies", type=int, default=AT_ONCE if cuda else 2, help="noisy copies of SmoothGrad, in one forward")
    parser.add_argument("--sampled", type=int, default=8 if cuda else 1, help="heads that peers with a forward a head patch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep rows there, and go on from those that it holds")
    given = parser.parse_args(arguments)
    give_back()
    rows = json.loads(given.json.read_text())["rows"] if given.json and given.json.exists() else []
    rows = [row for row in rows if not row["extrapolated"]]
    for row in _missing(given, rows):
        rows.append(row)
        depth = f"{row['language layers']} + {row['tower layers']} layers"
        print(f"{row['model']}, {depth}: {row['task']}, {row['road']}: {row['seconds']:.3g} s, {row['peak GB']:.3g} GB", flush=True)
        _keep(given.json, rows)
    if given.layers:
        rows += [row for shape in SHAPES.values() for row in extrapolated(shape, rows, given)]
        _keep(given.json, rows)
    print(table(rows))


def _missing(given: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows that are not there yet, as they are measured."""
    done = {tuple(row[name] for name in KEY) for row in rows}
    for shape in (SHAPES[name] for name in given.model):
        few, more = given.layers or (0, 0)
        for layers in [(few, few), (more, few), (few, more)] if given.layers else [shape.full]:
            yield from measured(shape, layers, given, done)
    if SAE_TASK in given.only and not any(row["task"] == SAE_TASK for row in rows):
        yield sae_row(given.device)


def _keep(file: Path | None, rows: list[dict[str, Any]]) -> None:
    """The rows with where and with what they were measured, whole or not at all."""
    if file:
        about = {"section": "real-sizes", "measured": datetime.now(UTC).date().isoformat()}
        with whole(file) as part:
            stamp = provenance.stamp("python tests/benchmarks/real_sizes.py")
            part.write_text(json.dumps(about | stamp | {"rows": rows}, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown: those of whole models, where there are any."""
    kept = [row for row in rows if row["extrapolated"] or row["task"] == SAE_TASK] or rows
    columns = ["model", "layers", "task", "by", "timed", "seconds", "planned s", "peak GB", "planned GB", "extrapolated"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in kept:
        depth = f"{row['language layers']} + {row['tower layers']}" if row["tower layers"] else ""
        cells = [row["model"], depth, row["task"], row["road"], row["timed"], f"{row['seconds']:.3g}", row.get("planned s") or ""]
        cells += [
            f"{row['peak GB']:.3g}",
            f"{row['planned GB']:.3g}" if row["planned GB"] else "",
            "yes" if row["extrapolated"] else "no",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
