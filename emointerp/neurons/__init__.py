"""Chapter 06, second half: what wakes the heads? From a head to the token that it reads, and to the neurons that write there.

A head at the last token takes the feeling from somewhere, its *source token* (`sources`). What lies there was written by neurons
of earlier layers: *trigger* neurons answer to the picture (`trigger_neurons`). At the last token, or along the text, others say
what has been gathered: *state* neurons, whose value vectors name an emotion (`state_neurons`). And a neuron again is fed by heads
below it (`feeders`).

Scores are attribution patching, `(m+ - m-) * dM/dm` of emotional picture and neutral twin (Nanda 2023; Syed et al. 2023), for all
neurons at once: the metric M is taken for a straight line. It is none where a head looks elsewhere, or a neuron rests, until much
has come together: beside the neutral twin alone the slope of what wakes such a part is nothing, or has the wrong sign. So the slope
is the mean of those in both runs (the trapezoid rule of integrated gradients: Sundararajan et al. 2017; Hanna et al. 2024), unless
one run's is asked for. The best are then patched exactly (`patched`), on the same pairs or better on others. What a neuron does
*through a head* is the metric's whole change less its change with the head held still.

`check_neurons` silences and restores what was found as a set, beside random neurons of the same layers that write about as much.

>>> states = state_neurons(vlm, world_pairs("selection", 72))                                 # doctest: +SKIP
>>> found = check_neurons(vlm, world_pairs("test", 72), [(n.layer, n.neuron) for n in states.parts()])  # doctest: +SKIP
>>> found.to_frame()                                                                          # doctest: +SKIP
"""

from emointerp.neurons.check import NeuronCheck, check_neurons
from emointerp.neurons.feeding import Feeders, feeders
from emointerp.neurons.roles import Neurons, naming, state_neurons, trigger_neurons, written
from emointerp.neurons.scores import FLIPS, NeuronScores, Tokens, attribution, neuron_scores, patched

__all__ = [
    "FLIPS", "Feeders", "NeuronCheck", "NeuronScores", "Neurons", "Tokens", "attribution", "check_neurons", "feeders", "naming",
    "neuron_scores", "patched", "state_neurons", "trigger_neurons", "written",
]  # fmt: skip
