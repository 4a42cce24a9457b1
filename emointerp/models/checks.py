"""What is looked at when a model is loaded, so that a model that does not fit says so at once and in words.

The model itself is not run: on a laptop that would take minutes for a model of billions of weights.
"""

from PIL import Image

from emointerp.errors import EmointerpError, ModelError
from emointerp.models.prompts import Prompt
from emointerp.models.vlm import VLM

HOW_TO_ADD = "To add a family or mend one, see emointerp/models/families/llava.py."


def checked(vlm: VLM) -> VLM:
    """The model itself, if its parts are in place and a small picture becomes image tokens with a box each."""
    anatomy = vlm.anatomy
    prompt = _sample_prompt(vlm)
    if not prompt.visual:
        raise ModelError(f"A prompt of {vlm.name!r} with a picture holds no image token (id {anatomy.image_token}). {HOW_TO_ADD}")
    _check_boxes(vlm, prompt)
    return vlm


def _sample_prompt(vlm: VLM) -> Prompt:
    """A prompt with a small grey picture, wider than high."""
    if not vlm.processor.chat_template:
        raise ModelError(
            f"The processor of {vlm.name!r} has no chat template, so how a prompt is written is unknown. Set "
            "`processor.chat_template` to the model's Jinja template and give it: load(..., processor=processor)."
        )
    try:
        return vlm.prompt(Image.new("RGB", (96, 64), "grey"), "It rained.", instruction="")
    except Exception as error:  # whatever a processor of somebody else may raise
        said = error.__cause__ if isinstance(error, EmointerpError) else error
        if not said:
            raise
        message = f"The processor of {vlm.name!r} ({type(vlm.processor).__name__}) makes no prompt of a picture and a text"
        raise ModelError(f"{message}: {type(said).__name__}: {said}. {HOW_TO_ADD}") from error


def _check_boxes(vlm: VLM, prompt: Prompt) -> None:
    """A box for each image token."""
    family, n = vlm.anatomy.family.name, len(prompt.visual)
    try:
        found = len(vlm.boxes(prompt))
    except Exception as error:  # a family's boxes read what they expect in the processor's inputs
        message = f"Where the image tokens of {vlm.name!r} look is unknown"
        raise ModelError(f"{message}: boxes of the {family} family: {type(error).__name__}: {error}. {HOW_TO_ADD}") from error
    if found != n:
        raise ModelError(
            f"The processor of {vlm.name!r} makes {n} image tokens of a picture, where the {family} family has {found} patches; "
            f"processor and model may not belong together. {HOW_TO_ADD}"
        )
