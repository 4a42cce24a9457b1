"""Typical wrong answers to the course's exercises, with the words that their checks have to say, and those of the open stub.

By notebook, and by the function that checks (a second exercise with the same function would be "name 2"). Each wrong answer is
code that runs in the notebook's own names after the right solution has run, so it can spoil the right `answer`; it runs on a copy
of the names and must not change what they hold.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Typical:
    """What the open stub has to say, and code that gives a wrong answer, each with the words that name its mistake."""

    open: str
    wrong: dict[str, str]


START_HERE = {
    "swayed": Typical(
        "Look up the row 'conflicting event' of guess.to_frame()",
        {
            "answer = 100 * answer": "a share, please, not a percentage",
            'answer = guess.to_frame().loc["conflicting event", "the picture\'s emotion"]': "asked is the event's, another column",
            'answer = 1 - guess.to_frame().loc["conflicting event", "the picture\'s emotion"]': "some of them name a third emotion",
            'answer = guess.to_frame().loc["gray picture", "the event\'s emotion"]': "that is the row of the gray picture",
        },
    ),
    "persuasive": Typical(
        "Write a sentence about something that happened to you",
        {
            'event = "I was afraid when the door opened by itself."': "it tells the feeling (afraid)",
            'event = "The dog barked."': "write at least 6",
            'event = next(e for e in loaded_events("joy", "test") if "fear" not in ei.tell(vlm, gray, e).named)': (
                "What usually happens to people who feel fear?"
            ),
        },
    ),
    "faintest": Typical(
        "Tell the scene's story at with_intensity(scene, 0.05), 0.10",
        {
            "answer = round(answer - 0.05, 2)": "too faint",
            "answer = round(answer + 0.05, 2)": "the model reads fainter expressions than that one",
            "answer = 100 * answer": "an intensity lies between 0 and 1",
        },
    ),
}

SUPERPOSITION = {
    "dimensionality_by_hand": Typical(
        "D_i = ||W_i||^2 / sum_j (W_i_hat . W_j)^2",
        {
            "answer = 1 / answer": "that is the fraction upside down",
            "W = toys.W[toys.index(0.05)]; answer = W.shape[0] / float((W**2).sum())": "that is D*, the mean over the model",
            "W = toys.W[toys.index(0.05)]; answer = float((W[:, 2] ** 2).sum() / ((W[:, 2] @ W) ** 2).sum())": (
                "in the sum W_i is to have length 1"
            ),
        },
    ),
    "break_even": Typical(
        "Set p^2 / 3 equal to p / 3 - p^2 / 4",
        {
            "answer = 1 - answer": "that is the sparsity, 1 - p",
            "answer = 1": "guessed by its mean",
            "answer = 0": "divide by p and look for the other solution",
            "answer = 0.5": "they should be equal",
        },
    ),
    "densest_superposition": Typical(
        "Look at the column `features` of twenty.summary()",
        {
            "answer = min(twenty.densities)": "a denser model has too many already",
            "answer = max(twenty.densities)": "one each, nothing is shared",
            "answer = int(twenty.summary().features.max())": "no model was trained at density",
        },
    ),
    "less_than_random": Typical(
        "Read interference.to_frame()",
        {
            'answer = "the same"': "beside directions that may point anywhere. Embeddings do not",
            'answer = "more"': "'more' would lie above those of random sets; what was measured lies below them",
            'answer = "fewer"': "is none of",
        },
    ),
}

SAE_DECOMPOSITION = {
    "code_by_hand": Typical(
        "Scores of all features first, relu, then keep the sae.k largest of them",
        {
            "answer = (sae.encoder @ vector + sae.b_enc).relu()": "that is relu without the top k",
            "answer = sae.encode(vector[None]).values[0]": "their values alone do not say whose they are",
            "answer = (answer > 0).float()": "what fires has its score as its value, not 1",
        },
    ),
    "direction_by_hand": Typical(
        "average the rows of each emotion",
        {
            'answer = codes["direction"].dense().numpy()[np.array(labels) == "sadness"].mean(0)': "that is the raw mean code",
            "answer = -answer": "the sign is turned",
            "answer = answer[answer != 0]": "expected 2048 numbers, one for each of the features",
        },
    ),
    "best_by_chance": Typical(
        "both are to be numbers",
        {
            "elsewhere = chosen": "the labels mean nothing, so on pictures that did not choose, what is left?",
            "chosen = 0.5": "so good would one feature be. The best of 2048 is picked for being lucky",
            'chosen = aurocs(codes["direction"], pd.DataFrame({"sadness": sad})).max()': "Were labels shuffled?",
        },
    ),
    "what_it_costs": Typical(
        "give a word for each of 'train mix', 'test', one of 'more', 'the same', 'less'",
        {
            'answer = answer | {"train mix": "more"}': "neither is below 0.025, half of 0.05 for each side",
            'answer = answer | {"test": "the same"}': "one is below 0.025, so random sets seldom lose as much or as little",
            'answer = answer["test"]': "give a word for each of",
        },
    ),
}

SALIENCY = {
    "gradient_by_hand": Typical(
        "torch.autograd.grad(target(x).sum(), x) gives df/dx",
        {
            "answer_1 = 3 * answer_1": "that is the sum over channels; asked is their mean",
            "x = joy.pixels([scene]).requires_grad_()\n"
            "answer_1 = torch.autograd.grad(joy(x).sum(), x)[0][0].mean(0)": "that still has signs",
            "x = joy.pixels([scene]).requires_grad_()\n"
            "answer_1 = torch.autograd.grad(joy(x).sum(), x)[0][0].abs()": "which axis is for the channels?",
        },
    ),
    "inside_over_area": Typical(
        'You need found.map and scene.masks()["expression"]',
        {
            'answer_2 = found.mass(scene.masks()["expression"])': "that is the share of the mass alone",
            "answer_2 = 1 / answer_2": "that is the ratio upside down",
            'face = scene.masks()["face"]; answer_2 = found.mass(face) / face.mean()': "that is the whole face",
        },
    ),
    "knows_this_picture": Typical(
        "Give the names in a set",
        {
            "answer_3 = {name for name, interval in checked.to_frame().ratio.items() if interval.low > 1}": (
                "that is the column `ratio`. Even the map of another picture is above 1 there"
            ),
            'answer_3 = {*answer_3, "picture alone"}': "is a control; leave the controls out",
            "answer_3 = set(sorted(answer_3)[1:])": "one is missing, or more",
        },
    ),
    "enough_copies": Typical(
        "Make two maps with seed=0 and seed=1, and correlate them",
        {
            "answer_4 = answer_4 // 2": "more copies are needed",
            "answer_4 = answer_4 * 2": "is enough",
            "answer_4 = 25": "25 is none of 1, 2, 4, 8, 16, 32",
        },
    ),
}

STEERING_VECTORS = {
    "by_hand": Typical(
        "Collect the residual stream of both prompts",
        {
            "answer = -answer": "that is neutral less emotional",
            "at_last = [vlm.prompt(*side) for side in (pairs[3].plus, pairs[3].minus)]\n"
            'one, other = ei.collect(vlm, at_last, ["residual"], positions="last")\n'
            "answer = one.residual[3, 0] - other.residual[3, 0]": "that is read at the end of the question",
            "answer = answer / answer.norm()": "the direction is right, the length is not",
        },
    ),
    "layer_by_clean_stories": Typical(
        "which column also sees stammering?",
        {
            'answer = int(selection.at().groupby("layer").hit.mean().idxmax())': "that is where most stories hit",
            "answer = 0": "another layer has more",
            'answer = selection.at().groupby("layer").clean.mean().max()': "a layer is a whole number",
        },
    ),
    "controls": Typical(
        "each of 'any push', 'any real difference', 'any emotion' needs one of",
        {
            'which = which | {"any push": which["any emotion"], "any emotion": which["any push"]}': (
                "“any push” means: any push of this length would do it, wherever it points. 'shuffled labels' keeps the pairs"
            ),
            'which = which | {"any emotion": "covariance-matched"}': "Take the control that keeps what the doubter calls enough",
            "stands = not stands": "the effect beats every control",
        },
    ),
}

LOGIT_LENS = {
    "first_layer": Typical(
        "Look at the column of the emotion in lens.to_frame()",
        {
            "answer = answer - 1": "too early",
            "answer = its_lens.n_layers - 1": "an earlier layer is there already",
            "answer = its_lens.n_layers": "this model has layers 0 to",
        },
    ),
    "over_the_face": Typical(
        "You need lens.values, vlm.boxes and scene.masks()",
        {
            "answer = 1 / answer": "that is the ratio the other way round",
            "answer = mass[inside].sum() / mass[~inside].sum()": "Take means, not sums",
        },
    ),
    "times_likelier": Typical(
        "Two logits, their difference, and one function of it",
        {
            "import math; answer = math.log(answer)": "that is the difference of the logits",
            "answer = 1 / answer": "that is the other word over this one",
        },
    ),
    "normalised_effect": Typical(
        "How far did the patch move the receiver, and how far is the donor from it?",
        {
            "answer = 100 * answer": "that is a percentage; asked is a share",
            "answer = (rows.value - rows.receiver).mean()": "Divide by how far it could have",
            "answer = 1 - answer": "that counts from the donor",
        },
    ),
}

HEAD_PATCHING = {
    "by_hand": Typical(
        'Collect "heads" of the emotional prompt, patch the neutral one',
        {
            "answer = -answer": "the sign is turned",
            "import math; answer = math.exp(answer)": "that is how many times as likely",
            "answer = float(metric(ei.run(vlm, minus, [edit]).logits[None]))": "take that of the neutral twin's own run off it",
        },
    ),
    "specificity_by_hand": Typical(
        "Negative scores to 0, divide by the sum",
        {
            "answer = 1 - answer": "that is how even the shares are",
            "answer = 100 * answer": "that is a percentage",
        },
    ),
    "sum_of_parts": Typical(
        "A guess first: larger, smaller, same?",
        {
            'answer = "larger"': "measured it is 'smaller'. Together the heads close",
            'answer = "same"': "The heads share work: what two of them bring counts once",
        },
    ),
    "enough_or_needed": Typical(
        "which rows close at least half of the gap, beyond random sets?",
        {
            'answer = "needed"': "That does not show that they are needed",
            'answer = "both"': "That does not show that they are needed",
            'answer = "neither"': "So they are enough",
        },
    ),
}

VEENA = {
    "by_hand": Typical(
        "Multiply the visual columns by beta",
        {
            "answer = attention.copy(); answer[picture] *= 4": "the rows do not sum to 1 any more",
            "answer = attention": "that is the attention as it was",
            "scores = np.log(attention); scores[picture] *= 4; answer = np.exp(scores) / np.exp(scores).sum()": (
                "beta multiplies the scores here. To multiply weights, add log beta"
            ),
        },
    ),
    "what_it_costs": Typical(
        "Give a list of methods, [] for none",
        {
            'answer = [*answer, "emotion prompt"]': "'emotion prompt': it mends, but false emotions on neutral pictures",
            "answer = answer[1:]": "keeps the rule too",
            'answer = ["none"]': "the table has no 'none'",
        },
    ),
    "whose_gain": Typical(
        "each of 'no picture', 'any colours', 'any emotion', 'any heads' needs one of",
        {
            'which = which | {"no picture": "swapped", "any emotion": "blank"}': "keeps a whole picture, but it is that of",
            'which = which | {"any colours": "blank"}': "Take the control that keeps what the doubter calls enough",
            "stands = not stands": "a control wins, its whole interval above 0. One is enough",
        },
    ),
}

YOUR_OWN_MODEL = {
    "cache_by_hand": Typical(
        "How many numbers does a key/value head keep of a token",
        {
            "answer = answer / 2": "a token leaves a key and a value, not one of them",
            "answer = answer * budgets[2].anatomy.n_heads / budgets[2].anatomy.n_kv_heads": "keys and values are kept of",
            "answer = 8 * answer": "that is bits",
        },
    ),
    "leaks": Typical(
        "give a list of the numbers of test pairs that leak",
        {
            "answer = answer[1:]": "1 are missing. Look at pair",
            'answer = [*answer, next(i for i, p in enumerate(colleague) if p.split == "test" and i not in answer)]': (
                "shares neither a picture nor an event with another split"
            ),
            "answer = [0, *answer]": "pair 0 is not of the split 'test'",
        },
    ),
    "what_to_say": Typical(
        "claims are 'helps', 'harms', 'not shown'",
        {
            'claim = "helps"': "one cannot say that it helps. Where does 0 lie?",
            "largest = 100 * difference.mean": "that is the mean, what was seen",
            "largest = 100 * difference.low": "that is the lower end",
        },
    ),
}

TYPICAL = {
    "00_start_here": START_HERE,
    "01_superposition": SUPERPOSITION,
    "02_sae_decomposition": SAE_DECOMPOSITION,
    "03_saliency": SALIENCY,
    "04_steering_vectors": STEERING_VECTORS,
    "05_logit_lens": LOGIT_LENS,
    "06_head_patching": HEAD_PATCHING,
    "07_veena": VEENA,
    "08_your_own_model": YOUR_OWN_MODEL,
}
