"""The planted model's weights. What each part does stands at the top of `emointerp.planted`; here is how it is made to.

- The residual stream is cut into orthogonal subspaces (`SPACES`), turned at random against its axes: a code of six, one an emotion,
  for what is seen in the picture, held by the last token, ready to be said and voiced, and what else is needed to speak. Random
  heads and neurons read all of them but `unread` and the constant, of which they have their biases; they write into what is left
  over, and a little anywhere (`LEAK`).
- RMSNorm: each token carries a constant of 64, far longer than all else, and the norms' weights undo the division by it. So what
  was written as 1 is read as 0.95 to 1.
- Positions: RoPE turns planted keys and queries by less than 1e-4, because they lie in its slowest pair (`SLOW`); random ones use
  all pairs.
- Neurons: gate `silu(10 (code - 0.3))`, up 1 of the constant: nearly a relu, at which small leaks end.
- Heads rest on the first token where there is nothing to look at.
- The backup's query is `asks - 2 held[fear]`: 1 where fear's head was silent, so that it looks at the code; -1 where it spoke, so
  that it looks anywhere but there. It writes 0.7 of what fear's head does.
- Loudness: random heads write as much at the last token as a planted head that speaks (1), random neurons as much as a planted
  neuron that is on (0.5), on average; `_level` measures and scales them.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from emointerp.emotions import BASIC
from emointerp.given import whole_number
from emointerp.models import VLM, load
from emointerp.pairs import Pair
from emointerp.planted.circuit import (
    BACKUP,
    COLOURS,
    D_HEAD,
    DECOY,
    FULL,
    GENERAL,
    HEADS,
    LAYERS,
    NEURONS,
    PATCH,
    RANDOM_HEADS,
    RANDOM_NEURONS,
    SIDE,
    SPECIFIC,
    STATES,
    TRIGGERS,
    WIDTH,
    WORDS,
    planted_pairs,
)
from emointerp.training.tokenizer import CHAT, VOCABULARY, train_tokenizer
from emointerp.world.language import vocabulary_sentences

SPACES = {"one": 1, "sink": 1, "asks": 1, "next": 4, "colour": 6, "seen": 6, "held": 6, "ready": 6, "voice": 6, "unread": 6}
ONE = 64.0  # length of the constant
EMBEDDED = 2.0  # length of a token's random part
LEAK = 0.02  # of what random parts write goes anywhere
SLOW = 7  # of a head's 8 rotary pairs, the one that turns by 1e-7 a token
LOOK = math.sqrt(12 * math.sqrt(D_HEAD))  # a query and a key of this size meet in a score of 12
REST = 0.25  # the first token's key beside the code's: a score of 3
INSTRUCTION = "Tell this as my story."


def planted_vlm(seed: int = 0, decoy: bool = True) -> VLM:
    """The model, made anew in about a second; random parts come from `seed`. Without a `decoy` its head is a random one too."""
    seed = whole_number(seed, "seed", 0)
    rng, processor = torch.Generator().manual_seed(seed), _processor()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = LlavaForConditionalGeneration(_config(processor.tokenizer.image_token_id)).eval()
        space = _space(rng)
        for weights in model.model.language_model.parameters():
            weights.fill_(ONE / math.sqrt(WIDTH))  # of the norms, which undo the division by the constant; all others follow
        _see(model, space, rng)
        _speak(model, space, processor.tokenizer, rng)
        for i, layer in enumerate(model.model.language_model.layers):
            _randomize(layer, i, space, rng)
        _plant(model.model.language_model.layers, space, decoy)
        model.generation_config.update(max_new_tokens=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, do_sample=False)
        vlm = replace(load(model, processor=processor), name=f"planted {seed}", instruction=INSTRUCTION)
        _level(vlm, planted_pairs("train", 12, seed), [*RANDOM_HEADS] if decoy else [*RANDOM_HEADS, DECOY])
    return vlm


def _processor() -> LlavaProcessor:
    """The ordinary LLaVA processor for 16 patches; all emotion words of the model are whole tokens."""
    words = [f" {word}" for some in WORDS.values() for word in some] + [" nothing"]
    tokenizer = train_tokenizer([*vocabulary_sentences(scenes=3), *(1000 * words)])
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer=tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="full", chat_template=CHAT, image_token="<image>", num_additional_image_tokens=0,
    )  # fmt: skip


def _config(image_token: int) -> LlavaConfig:
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=PATCH,
        vision_use_head=False,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e8},
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=image_token, vision_feature_layer=-1,
        vision_feature_select_strategy="full", image_seq_length=(SIDE // PATCH) ** 2, projector_hidden_act="gelu",
    )  # fmt: skip


def _space(rng: torch.Generator) -> dict[str, Tensor]:
    """Orthonormal directions of the residual stream by name, [size, d_model]; "noise" is what is left over."""
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=rng))[0]
    sizes = [*SPACES.values(), WIDTH - sum(SPACES.values())]
    space = dict(zip([*SPACES, "noise"], basis.split(sizes), strict=True))
    return space | {"read": torch.cat([some for name, some in space.items() if name not in ("one", "unread")])}


def _random(n: int, length: float, within: Tensor, rng: torch.Generator) -> Tensor:
    """Random vectors of about a length within a subspace, [n, d_model]."""
    return length / math.sqrt(len(within)) * torch.randn(n, len(within), generator=rng) @ within


def _written(n: int, space: dict[str, Tensor], rng: torch.Generator) -> Tensor:
    """Random vectors of about length 1 in what is left over, and a little anywhere, [n, d_model]."""
    return _random(n, 1, space["noise"], rng) + _random(n, LEAK, torch.cat([space["one"], space["read"], space["unread"]]), rng)


def _see(model: LlavaForConditionalGeneration, space: dict[str, Tensor], rng: torch.Generator) -> None:
    """A tower that passes each patch's mean colour and random features on, and a projector that knows the six colours."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    for weights in (*tower.parameters(), *projector.parameters()):
        weights.zero_()
    conv, first, second = tower.embeddings.patch_embedding.weight, projector.linear_1, projector.linear_2
    conv.copy_(0.6 * torch.randn(conv.shape, generator=rng))
    conv -= conv.mean((2, 3), keepdim=True)  # grain, which is faint, and alike in twins
    conv[:3] = torch.eye(3)[..., None, None] / PATCH**2
    n = len(COLOURS)
    first.weight.copy_(0.5 * torch.randn(first.weight.shape, generator=rng))
    first.weight[:n] = 0
    first.weight[:n, :3] = 12 / FULL * torch.tensor(list(COLOURS.values())) / 3  # 12 for the colour itself, 4 for its neighbours
    first.bias[:n] = -8
    second.weight.copy_(_random(WIDTH, 0.2, space["noise"], rng).T)
    second.weight[:, :n] = space["colour"].T / 4
    second.bias.copy_(ONE * space["one"][0])


def _speak(model: LlavaForConditionalGeneration, space: dict[str, Tensor], tokenizer, rng: torch.Generator) -> None:
    """Random words, but for those that ask, answer and lead on."""

    def token(text: str) -> int:
        (found,) = tokenizer(text, add_special_tokens=False).input_ids
        return found

    enter, leave = model.model.language_model.embed_tokens.weight, model.lm_head.weight
    enter.copy_(_random(VOCABULARY, EMBEDDED, space["noise"], rng) + ONE * space["one"])
    enter[tokenizer.bos_token_id] += space["sink"][0]
    enter[token(" felt")] += space["asks"][0]
    leave.copy_(_random(VOCABULARY, 0.5, space["noise"], rng) - 3 / ONE * space["one"])
    leave[token(" nothing")] += 9 / ONE * space["one"][0]
    said = {e: [token(f" {word}") for word in some] for e, some in WORDS.items()}
    for emotion, voice in zip(BASIC, space["voice"], strict=True):
        leave[said[emotion]] += 11 * voice
    answers = [token(" nothing"), *sum(said.values(), [])]
    leads = [([token(":")], token(" I")), ([token(" I")], token(" felt")), (answers, token(".")), ([token(".")], 2)]
    for (before, after), direction in zip(leads, space["next"], strict=True):
        enter[before] += direction
        leave[after] += 14 * direction


def _randomize(layer: torch.nn.Module, i: int, space: dict[str, Tensor], rng: torch.Generator) -> None:
    """All heads and neurons of a layer random: they look at a few tokens each, and get numbers of about 1 out of them.

    What they read is about as long as the embedding and all that earlier layers have written. About half of it is the constant.
    """
    per_number = math.sqrt(len(space["read"]) / (EMBEDDED**2 + i * (HEADS + NEURONS / 4)))
    attention, mlp = layer.self_attn, layer.mlp
    for module, varying, fixed in (
        (attention.q_proj, 1.7, 0),
        (attention.k_proj, 1.7, 0),
        (attention.v_proj, 0.6, 0.8),
        (mlp.gate_proj, 0.6, 0.8),
        (mlp.up_proj, 0.1, 1),
    ):
        n = len(module.weight)
        module.weight.copy_(_random(n, varying * per_number, space["read"], rng) + _random(n, fixed / ONE, space["one"], rng))
    for module in (attention.o_proj, mlp.down_proj):
        module.weight.copy_(_written(module.weight.shape[1], space, rng).T)


def _plant(layers: torch.nn.ModuleList, space: dict[str, Tensor], decoy: bool) -> None:
    """The circuit, its decoy and its backup, in the places that `PLANTED` names."""
    asks, rest, seen, held = space["asks"][0], REST * space["sink"][0], space["seen"], space["held"]
    for i, emotion in enumerate(BASIC):
        for at in TRIGGERS[emotion]:
            _plant_neuron(layers, at, space["colour"][i], seen[i], space["one"][0])
        for at in STATES[emotion]:
            _plant_neuron(layers, at, space["ready"][i], space["voice"][i], space["one"][0])
        _plant_head(layers, SPECIFIC[emotion], asks, seen[i] + rest, seen[[i]], held[[i]])
    if decoy:
        _plant_head(layers, DECOY, asks, seen.sum(0) + rest, seen, space["unread"])
    _plant_head(layers, GENERAL, asks, asks + rest, held, space["ready"])
    fear = BASIC.index("fear")
    _plant_head(layers, BACKUP, asks - 2 * held[fear], seen[fear] + rest, seen[[fear]], 0.7 * held[[fear]])


def _plant_head(layers: torch.nn.ModuleList, at: tuple[int, int], query: Tensor, key: Tensor, read: Tensor, write: Tensor) -> None:
    """A head that looks where `query` meets `key` and carries what lies along each of `read` to the same of `write`."""
    attention, mine = layers[at[0]].self_attn, slice(at[1] * D_HEAD, (at[1] + 1) * D_HEAD)
    for module, rows in (
        (attention.q_proj, {SLOW: LOOK * query}),
        (attention.k_proj, {SLOW: LOOK * key}),
        (attention.v_proj, dict(enumerate(read))),
    ):
        module.weight[mine] = 0
        for row, value in rows.items():
            module.weight[mine][row] = value
    attention.o_proj.weight[:, mine] = 0
    attention.o_proj.weight[:, mine][:, : len(write)] = write.T


def _plant_neuron(layers: torch.nn.ModuleList, at: tuple[int, int], read: Tensor, write: Tensor, one: Tensor) -> None:
    """A neuron that writes half of `write` where there is 1 of `read`, and next to nothing where there is less than 0.3."""
    mlp, n = layers[at[0]].mlp, at[1]
    mlp.gate_proj.weight[n] = 10 * (read - 0.3 / ONE * one)
    mlp.up_proj.weight[n] = one / ONE
    mlp.down_proj.weight[:, n] = write / 2 / 7


# loudness


def _level(vlm: VLM, pairs: list[Pair], heads: list[tuple[int, int]]) -> None:
    """Scale what random parts write, layer by layer, because each layer's reading depends on those before it."""
    inputs = vlm.placed(vlm.batched([vlm.prompt(*side, answer="I felt") for pair in pairs for side in (pair.plus, pair.minus)]))
    real = inputs["attention_mask"].bool()
    for i, layer in enumerate(vlm.model.model.language_model.layers):
        o_proj, down_proj = layer.self_attn.o_proj, layer.mlp.down_proj
        z = _entering(vlm, inputs, o_proj)[:, -1].unflatten(-1, (HEADS, D_HEAD))
        loud = torch.einsum("bhd,mhd->bhm", z, o_proj.weight.unflatten(1, (HEADS, D_HEAD))).norm(dim=-1).mean(0)
        scales = [1 / loud[h] if (i, h) in heads else 1.0 for h in range(HEADS)]
        o_proj.weight *= torch.tensor(scales).repeat_interleave(D_HEAD)
        loud = _entering(vlm, inputs, down_proj)[real].abs().mean(0) * down_proj.weight.norm(dim=0)
        down_proj.weight *= torch.tensor([0.5 / loud[n] if (i, n) in RANDOM_NEURONS else 1.0 for n in range(NEURONS)])


def _entering(vlm: VLM, inputs: dict[str, Tensor], module: torch.nn.Module) -> Tensor:
    """What a module is given in a forward."""
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    try:
        vlm.model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return kept[0]
