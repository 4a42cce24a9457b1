"""A vision-language model in hand: prompts with their spans, and plain generation."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from emointerp.errors import InputError
from emointerp.given import expected, number, whole_number
from emointerp.models.anatomy import Anatomy, anatomy_of
from emointerp.models.elsewhere import Elsewhere
from emointerp.models.images import to_image
from emointerp.models.prompts import Prompt, as_prompts, checked_text, visual_positions


@dataclass(frozen=True, eq=False)
class VLM:
    """The untouched Hugging Face model and its processor, under one roof.

    `instruction` follows an event in a story prompt; `folder` is where the weights lie, if that is known. `remote` is False, or
    where the model runs instead of here: True (NDIF) or "local" (its rehearsal); then `model` holds no weights (`Elsewhere`).
    """

    name: str
    model: PreTrainedModel | Elsewhere = field(repr=False)
    processor: ProcessorMixin = field(repr=False)
    instruction: str
    folder: str | None = field(default=None, repr=False)
    remote: bool | str = False

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where the model's layers, heads, neurons and visual tokens are."""
        return anatomy_of(self.structure)

    @property
    def structure(self) -> torch.nn.Module:
        """The model's parts, to ask what is where; of a remote model they hold no weights."""
        return self.model.structure if self.remote else self.model

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go: where its first weights are, or are brought to where a `device_map` offloads them.

        Inputs of a remote model stay on the CPU until they are sent.
        """
        if self.remote:
            return torch.device("cpu")
        if self.model.device.type != "meta":
            return self.model.device
        placed = getattr(self.model, "hf_device_map", {}).values()
        return torch.device(next((device for device in placed if device not in ("cpu", "disk")), "cpu"))

    def prompt(self, image: Any, text: str, instruction: str | None = None, answer: str = "") -> Prompt:
        """A story prompt: a picture, an event, and the model's instruction to tell the story.

        `image` is a path, a PIL image, an array or a `Scene`; `instruction` replaces the model's own, "" leaves it out.
        For a plain question: `vlm.prompt(image, question, instruction="")`. `answer` is how the model's answer has begun, such
        as "I felt"; then the last token is its last, and what comes next is what is read and generated.
        """
        text = checked_text(text)
        for given in (instruction, answer):
            expected(given, str | None, "a text: vlm.prompt(image, text, instruction='…', answer='I felt')")
        request = self.instruction if instruction is None else instruction
        full = self._without_marks(f"{text} {request}".strip())
        picture, rendered = to_image(_one(image)), self._begun(self._rendered(full), answer)
        try:
            inputs = self._processed([picture], [rendered])
        except ValueError as error:  # each family's processor has limits of its own
            size = f"{picture.width} x {picture.height} pixels"
            raise InputError(f"{self.name!r} cannot take this picture of {size} beside this text: {error}.") from error
        visual = visual_positions(inputs["input_ids"], self.anatomy.image_token)
        self._check_length(inputs["input_ids"].shape[1], len(visual))
        return Prompt(image=picture, text=full, rendered=rendered, inputs=inputs, visual=visual)

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float | None = None,
        seed: int | None = None,
        batch: int = 32,
        through: Callable[..., torch.Tensor] | None = None,
        **options: Any,
    ) -> str | list[str]:
        """The model's answer to each prompt: greedy, or sampled at a `temperature` above 0 with a `seed`.

        One prompt gives a string, several give a list of strings in their order. Sampling draws from the whole
        distribution, unless `options`, which go to transformers' `generate`, say otherwise (`top_k`, `top_p`); `do_sample=True`
        without a temperature samples at 1.
        `through(prompts, inputs, **options)` takes the place of the model's own `generate`, for one batch; tracing uses it.
        """
        if isinstance(prompts, Prompt):
            options |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "through": through}
            return self.generate([prompts], **options)[0]
        prompts, batch = as_prompts(prompts), whole_number(batch, "batch", 1)
        options |= _drawn(temperature, options) | {"max_new_tokens": whole_number(max_new_tokens, "max_new_tokens", 1)}
        if self.remote and options["do_sample"]:
            options["seed"] = seed
        answers: list[str] = []
        with _seeded(seed, self.device), torch.no_grad():
            for start in range(0, len(prompts), batch):
                some = prompts[start : start + batch]
                inputs = some[0].inputs if len(some) == 1 else self.batched(some)
                placed = self.placed(inputs)
                tokens = through(some, placed, **options) if through else self.model.generate(**placed, **options)
                new = tokens[:, inputs["input_ids"].shape[1] :]
                answers += [a.strip() for a in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers

    def ask(self, image: Any, question: str, **options: Any) -> str:
        """The answer to a plain question about a picture."""
        return self.generate(self.prompt(image, question, instruction=""), **options)

    def boxes(self, prompt: Prompt) -> np.ndarray:
        """Where each visual token looks: float [visual tokens, 4], left, top, right, bottom in pixels of `prompt.image`.

        NaN where a token stands for no place, as line breaks between rows of patches do.
        """
        return self.anatomy.family.boxes(prompt.image.size, prompt.inputs, self.processor, self.model.config)

    def batched(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Model inputs of several prompts, padded on the left; made anew of their pictures and texts, not of their `inputs`."""
        return self._processed([p.image for p in prompts], [p.rendered for p in prompts])

    def placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Model inputs on the model's device, pictures in the model's dtype; one that runs elsewhere casts them there."""
        moved = {k: v.to(self.device) if torch.is_tensor(v) else v for k, v in inputs.items()}
        floating = {k for k, v in moved.items() if torch.is_tensor(v) and v.is_floating_point()}
        dtype = torch.float32 if self.remote else self.model.dtype
        return {k: v.to(dtype) if k in floating else v for k, v in moved.items()}

    def _without_marks(self, text: str) -> str:
        """The text itself; one with a mark such as `<image>`, which would become the model's own token, is refused."""
        marks = {*self.tokenizer.all_special_tokens, getattr(self.processor, "image_token", None)} - {None}
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise InputError(f"The text holds bytes that are no text: {text[:60]!a}; give it in UTF-8.")
        for mark in sorted(marks):
            if mark in text:
                raise InputError(f"The text holds {mark!r}, which the model reads as a mark of its own; leave it out.")
        return text

    def _rendered(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _begun(self, rendered: str, answer: str) -> str:
        """A rendered prompt with the beginning of an answer, after a space where the template leaves none."""
        return rendered + " " * bool(answer and not rendered[-1].isspace()) + self._without_marks(answer)

    def _processed(self, images: list, texts: list[str]) -> dict[str, Any]:
        options: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(texts) > 1 else {}
        opening = self.tokenizer.bos_token
        if opening and texts[0].startswith(opening):  # a template that writes it; the tokenizer would write it again
            options["add_special_tokens"] = False
        return dict(self.processor(images=[[image] for image in images], text=texts, return_tensors="pt", **options))

    def _check_length(self, tokens: int, visual: int) -> None:
        limit = self.anatomy.context
        if tokens > limit:
            came = f"The prompt has {tokens:,} tokens, {visual:,} of them for the picture; {self.name!r} reads at most {limit:,}"
            raise InputError(f"{came}. Shorten the text, or make the picture smaller if most are the picture's.")


def check_model(given: Any) -> None:
    """Refuse what is no model, such as a prompt in its place."""
    expected(given, VLM, "a model as the first argument: vlm = ei.load()")


def _drawn(temperature: float | None, options: dict[str, Any]) -> dict[str, Any]:
    """How tokens are drawn, in transformers' options: greedy, or at a temperature from the whole distribution."""
    asked = options.get("do_sample")
    heat = float(asked or 0) if temperature is None else number(temperature, "The temperature", least=0, why=" (0 is greedy)")
    if asked is not None and bool(asked) != (heat > 0):
        raise InputError(
            f"do_sample is {asked} and the temperature {heat:g}; give the temperature alone: 0 is greedy, 1.0 samples."
        )
    if not heat:
        return {"do_sample": False}
    return {"top_k": 0, "top_p": 1.0} | options | {"do_sample": True, "temperature": heat}


def _one(image: Any) -> Any:
    """The picture itself; several at once are refused."""
    if isinstance(image, list | tuple):
        raise InputError(f"{len(image)} pictures came where one was expected; make a prompt of each.")
    return image


@contextmanager
def _seeded(seed: int | None, device: torch.device):
    """Sampling with a seed that leaves the global random state as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
