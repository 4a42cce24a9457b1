"""The tour's chapter on the logit lens: when the answer becomes an emotion word."""

from tqdm.auto import tqdm

from emointerp.emotions import BASIC
from emointerp.lens import Emergence, LogitLens, emergence, logit_lens
from emointerp.models import VLM
from emointerp.tour.chapter import Chapter, Job, figure_html, share
from emointerp.world import sample

BEGUN = "I felt"
PICTURES = 60


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Read the pictures' prompts layer by layer, then the test split's."""
    prompts = [(name, vlm.prompt(picture, job.event, answer=BEGUN)) for name, picture in job.pictures]
    read = [(name, logit_lens(vlm, prompt)) for name, prompt in tqdm(prompts, desc="lens")]
    measured = emergence(vlm, sample("test", PICTURES, seed=5, emotions=BASIC))
    blocks = [("When the word becomes likely, over the test split", figure_html(measured.plot(), "Mass by layer") + _explained())]
    blocks += [(name, _picture_block(lens)) for name, lens in read]
    results = {"test split": {str(i): dict(row) for i, row in measured.to_frame().iterrows()}, "pictures": dict(map(_result, read))}
    return Chapter("lens", "Logit lens", _summary(vlm, measured), tuple(blocks), results)


def _summary(vlm: VLM, measured: Emergence) -> tuple[str, ...]:
    frame, last = measured.to_frame(), vlm.anatomy.n_layers - 1
    half = next((i for i in frame.index if frame.pictured[i].mean > frame.pictured[last].mean / 2), last)
    return (
        f"The answer begins “{BEGUN}”. After the last layer the words of the pictured emotion have "
        f"{share(frame.pictured[last])} of the probability on average; half of that is reached after layer {half} of 0 to {last}.",
        f"Control: beside the neutral twin the same words have {share(frame.twin[last])}.",
    )


def _explained() -> str:
    return (
        f"<p>{PICTURES} test pictures with neutral events. Each layer's residual stream at the last token is read with the model's "
        "own final norm and unembedding. What a layer would say is no proof that the model uses it.</p>"
    )


def _picture_block(lens: LogitLens) -> str:
    return figure_html(lens.plot(), "Emotion mass at the last token") + figure_html(
        lens.plot_picture(), "Emotion mass of visual tokens"
    )


def _result(named: tuple[str, LogitLens]) -> tuple[str, dict]:
    name, lens = named
    rows = lens.to_frame().drop(columns=["position", "token"])
    return name, {"layers": rows.to_dict("records")}
