"""How much a reproduction measures, what each step has the model do, and how long that takes on GPUs, computed before it begins.

The counts are of the kinds that `tour.sizes` has: prompts read, prompts read with gradients, interventions at the last token,
stories told. Times stand on `models.budget`, which computes and does not measure; they are good to a factor of a few, enough to
tell an hour from a week.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from emointerp.errors import InputError
from emointerp.measures import STAGES
from emointerp.models.anatomy import Anatomy
from emointerp.models.budget import GPUS, Budget
from emointerp.tour.sizes import BRANCHES, GRADIENT, Pace

METHODS, SETS = 9, 4
BENCHMARK = 12_799  # clips of MER-UniBench's nine sets


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the page says `name`. Numbers are of pairs, at most, unless said otherwise."""

    name: str = "full"
    pairs: Mapping[str, int] = field(
        default_factory=lambda: {"direction": 120, "selection": 48, "tuning": 48, "test": 48}, hash=False
    )
    layers: int = 64  # at most, evenly spaced
    alphas: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    draws: int = 5  # of random directions and random heads
    swept: int = 24  # selection pairs of the alpha x layer sweep, test pairs of its test
    flow: int = 24  # test pairs of saliency, cuts and transplants, and of the lens
    heads: int = 10  # in all, half of them upstream
    sets: int = 100  # random sets of heads
    neurons: int = 30
    betas: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0, 8.0, 16.0)
    gammas: tuple[float, ...] = (1.0, 1.2, 1.5)
    tuned: bool = True  # rivals each at its best strength; else as their papers have them
    items: int = 120  # of each set of the drawn world
    clips: int | None = None  # of each set of MER-UniBench; None: all
    seeds: int = 3
    cases: int = 6
    tokens: int = 64


FULL = Sizes()
QUICK = Sizes(
    "quick",
    pairs={"direction": 48, "selection": 24, "tuning": 24, "test": 24},
    layers=8,
    alphas=(0.5, 1.0, 2.0),
    draws=2,
    swept=12,
    flow=8,
    sets=30,
    neurons=10,
    betas=(1.0, 2.0, 8.0),
    gammas=(1.0, 1.5),
    tuned=False,
    items=24,
    clips=24,
    cases=4,
    tokens=48,
)
NAMED = {some.name: some for some in (FULL, QUICK)}


def checked(size: str | Sizes) -> Sizes:
    """Sizes by their name, or as they came."""
    if isinstance(size, Sizes):
        return size
    if size not in NAMED:
        raise InputError(f"size is {size!r}; expected {' or '.join(NAMED)}.")
    return NAMED[size]


@dataclass(frozen=True)
class Work:
    """What a step has the model do: prompts read, read with gradients, branches at the last token, stories told."""

    reads: float = 0
    gradients: float = 0
    branches: float = 0
    stories: float = 0

    def seconds(self, read: float, story: float) -> float:
        """From the seconds of one prompt and one story."""
        return (self.reads + GRADIENT * self.gradients + self.branches / BRANCHES) * read + self.stories * story


def cut(sizes: Sizes, there: Mapping[str, int]) -> Sizes:
    """The same where there are so many pairs of each role and no more: `sizes.pairs` are what is used of them."""
    return replace(sizes, pairs={role: min(n, there[role]) for role, n in sizes.pairs.items()})


def work(sizes: Sizes, anatomy: Anatomy, data: bool, own: bool = False) -> dict[str, Work]:
    """The work of each step, by its name, in the paper's order; of `own` pairs both sides of the test part are asked as well."""
    p, layers = sizes.pairs, anatomy.n_layers
    swept, heads = min(layers, sizes.layers), anatomy.n_layers * anatomy.n_heads
    tried, tested, flow = (min(n, p[role]) for n, role in ((sizes.swept, "selection"), (sizes.swept, "test"), (sizes.flow, "test")))
    pushed = swept * (tried * len(sizes.alphas) + tested * (1 + sizes.draws))
    both, cases = p["selection"] + p["test"], min(sizes.cases, p["test"])
    fits = 2 * p["tuning"] * len(sizes.betas) * len(sizes.gammas)
    rivals = 2 * p["tuning"] * 19 if sizes.tuned else 0
    items = min(sizes.clips or BENCHMARK, BENCHMARK / 9) * 9 if data else SETS * sizes.items + 2 * p["test"] * own
    asked = (METHODS + sizes.draws) * sizes.seeds * items
    return {
        "pairs": Work(),
        "vectors": Work(reads=2 * p["direction"], stories=2 * p["direction"]),
        "layers": Work(reads=pushed, stories=pushed + 2 * (tried + tested)),
        "lens": Work(reads=2 * flow),
        "flow": Work(reads=flow * (7 + 8 * (layers - 2) + 5 * 3 * layers / 2), gradients=2 * flow, stories=47 * flow),
        "heads": Work(
            reads=5 * both + 2 * p["selection"] + p["test"], branches=heads * (both + p["selection"]) + 3 * p["test"] * sizes.sets
        ),
        "neurons": Work(reads=8 * both, gradients=6 * p["selection"] + 2 * p["test"], branches=2 * p["test"] * sizes.neurons),
        "veena": Work(reads=fits + rivals, stories=fits + rivals + asked),
        "cases": Work(reads=cases, stories=5 * cases),
    }


def planned(done: Mapping[str, Work], budget: Budget, pace: Pace | None = None) -> pd.DataFrame:
    """A row a step and one for all: what is done, and the hours on each GPU that holds the model, computed, not measured.

    `pace`: seconds of a prompt and a story measured on this machine, if known; the column "here".
    """
    times = {name: row for name, row in budget.to_frame().iterrows() if row["fits"]}
    rows = {}
    for step, some in done.items():
        row = {"prompts": some.reads + some.gradients, "branches": some.branches, "stories": some.stories}
        row |= {f"{gpu}, h": _seconds(some, budget, gpu) / 3600 for gpu in times}
        rows[step] = row | ({} if pace is None else {"here, h": some.seconds(pace.read, pace.story) / 3600})
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")
    return pd.concat([frame, frame.sum().to_frame("all").T.rename_axis("step")])


def _seconds(some: Work, budget: Budget, gpu: str) -> float:
    """Stories are told in batches as large as fit, interventions read in forwards of up to 512 branches."""
    row, batch = GPUS[gpu], budget.batch(GPUS[gpu])
    read = budget.prompt_seconds(row)
    story = read + budget.new * budget.step_seconds(row, batch) / batch
    return some.seconds(read, story)


def stages(n: int) -> dict[str, tuple[int, ...]]:
    """The three stages of the digest, 8, 12 and 12 of 32 layers, as parts of a model of n layers; from 0. Empty ones are left out.

    >>> {name: (some[0], some[-1]) for name, some in stages(32).items()}
    {'shallow': (0, 7), 'middle': (8, 19), 'deep': (20, 31)}
    """
    ends = [0, round(n / 4), round(5 * n / 8), n]
    runs = {name: tuple(range(a, b)) for name, a, b in zip(STAGES, ends, ends[1:], strict=False)}
    return {name: run for name, run in runs.items() if run}
