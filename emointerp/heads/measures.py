"""A patch of heads, and where it may stand: shared by the map and the function check. What it is judged by is in `measures`."""

from collections.abc import Sequence

from emointerp.errors import InputError
from emointerp.measures import HITS, Measured
from emointerp.tracing import Activations, SetHead, patch
from emointerp.tracing.edits import FROM_LAST


def patched_head(donor: Activations, layer: int, head: int, positions: Sequence[int], lasts: bool) -> SetHead:
    """A head's output from the donor's run at `positions`; where it `lasts`, that of the last one, also in the answer's tokens."""
    if lasts:
        return SetHead(layer, head, donor.at("heads", layer, positions[-1])[head], FROM_LAST)
    return patch(donor, layer, head=head, positions=positions)


def checked_positions(positions: object, metric: Measured) -> tuple:
    """Positions as a tuple; a story is told with heads patched from the last token on."""
    where = (positions,) if isinstance(positions, str | int) else tuple(positions)
    if metric == HITS and where != ("last",):
        raise InputError(f"A story's heads are patched from the last token on: positions='last', not {positions!r}.")
    return where
