"""Chapter 01: how a vector can hold more features than it has dimensions.

- `train_toys`: toy models of Elhage et al. 2022, many at once, the best at each sparsity; `dimensionality`, `shapes` and the
  figures say how they store their features.
- `embed`, `read_factors`, `by_dimensions`, `interference`: the same questions to a vision tower, whose pictures' factors are known.

>>> toys = train_toys(features=2, hidden=1, densities=(1.0, 0.1), importance=1.0, steps=300, progress=False)
>>> toys.summary().features.tolist()
[1, 2]
"""

from emointerp.superposition.tower import (
    Embedded,
    Interference,
    Readings,
    by_dimensions,
    embed,
    factor_table,
    interference,
    plot_by_dimensions,
    read_factors,
    thumbnails,
    untrained,
)
from emointerp.superposition.toy import (
    ToyModels,
    dimensionality,
    dimensions_per_feature,
    draw_columns,
    shapes,
    toy_loss,
    train_toys,
)

__all__ = [
    "Embedded", "Interference", "Readings", "ToyModels", "by_dimensions", "dimensionality", "dimensions_per_feature",
    "draw_columns", "embed", "factor_table", "interference", "plot_by_dimensions", "read_factors", "shapes",
    "thumbnails", "toy_loss", "train_toys", "untrained",
]  # fmt: skip
