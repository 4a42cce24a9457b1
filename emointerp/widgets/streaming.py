"""Words of stories while they are being told, for panels that show the first of them before the rest is there."""

from collections.abc import Callable

from torch import Tensor

from emointerp.models import VLM

EVERY = 12  # tokens after which each story is shown again


def stories_so_far(vlm: VLM, rows: int, say: Callable[[list[str]], None]) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """A logits processor, for `generate` or `sweep`, that changes nothing: `say` gets what `rows` stories say so far.

    After every `EVERY` tokens, as long as none has ended; never of a remote model, whose processors run elsewhere. Our own few
    lines: transformers' `TextStreamer` takes one story, and a `sweep` has no streamer.
    """
    start: list[int] = []

    def watch(ids: Tensor, logits: Tensor) -> Tensor:
        start.append(ids.shape[1])
        told = ids[:, start[0] :]
        if len(told) == rows and told.shape[1] and told.shape[1] % EVERY == 0:
            say([f"{text.strip()} …" for text in vlm.tokenizer.batch_decode(told, skip_special_tokens=True)])
        return logits

    return [] if vlm.remote else [watch]
