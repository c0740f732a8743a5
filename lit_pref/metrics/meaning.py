"""Formula and unit of the numbers that objectives and other parts of the package log directly.

The meaning of all other numbers is in the modules that compute them: `MEASURES` and `TOTALS` in `pair_metrics`,
`CALIBRATION` in `calibration`, `COLUMNS` in `records`. docs/metrics.md is generated from these mappings.

Words in capitals are placeholders: K is the index of a reference, COLUMN a column of the data, METHOD the class of an
objective in a sum, VALUE a name that it logs.
"""

from typing import NamedTuple


class Meaning(NamedTuple):
    """The meaning of a number: an equation or a few words, and its unit (empty for a text)."""

    formula: str
    unit: str


LOGGED_BY_OBJECTIVES: dict[str, Meaning] = {
    "logits": Meaning("x = beta (φ(h_w) - φ(h_l)) - o, the input of the link", "1"),
    "beta": Meaning("beta of the pair", "reward per nat"),
    "target": Meaning("p, the probability that the loss fits, clamped to [0, 1]", "1"),
    "target_entropy": Meaning("-p log p - (1 - p) log(1 - p), the smallest possible loss of a pair", "nats"),
    "kl_to_target": Meaning("loss of the link - target_entropy = KL(p || sigmoid(x)); 0 is a perfect fit", "nats"),
    "weight": Meaning(
        "omega, by which the preference loss of the pair is multiplied, if the objective has weights", "1"
    ),
    "epsilon_step": Meaning("direction of epsilon-DPO's step: 1 lowers beta, -1 raises it, 0 keeps it", "1"),
    "reference_weights/K": Meaning("weight of reference K in the mixture, mean of both responses", "1"),
    "clipped": Meaning("share of the log-probs of references 1, 2, ... that Harmonic or ClippedGeometric clipped", "1"),
    "kept": Meaning("1 if beta-DPO's filter keeps the pair, else 0 (training only)", "1"),
    "METHOD/loss": Meaning("loss of an objective in a sum (Weighted), without its weight", "as its own"),
    "METHOD/VALUE": Meaning("a value that it logs, if it is not the first objective of the sum", "as its own"),
    "extra_response_change": Meaning("log π(y') - log π_ref(y') of the extra response y' (SELM)", "nats"),
    "prompt_value": Meaning("V(x), the value of the prompt by HPO's head", "auxiliary reward"),
    "value_loss": Meaning("expectile loss of V(x), mean over both responses (HPO)", "auxiliary reward squared"),
    "advantage_weight": Meaning("exp(A / temperature), clipped, mean over both responses (HPO)", "1"),
    "prompt_gap": Meaning(
        "h_w - h_w', the log-ratio of the chosen response under its prompt minus that under a "
        "corrupted one (ConditionalContrast)",
        "nats",
    ),
}
"""Values in `ObjectiveOutput.logged` of the shipped objectives and parts; reported as means over pairs."""

TRAINING: dict[str, Meaning] = {
    "train/pairs_per_second": Meaning("pairs / seconds since the last log line, validation excluded", "1/s"),
    "train/response_tokens_per_second": Meaning("tokens of both responses / the same seconds", "1/s"),
    "train/peak_memory_gib": Meaning(
        "largest memory use since the start, of the GPU if there is one, else of the process", "GiB"
    ),
    "train/gradient_norm": Meaning(
        "L2 norm of the gradient in the logged optimizer step, before clipping", "loss per weight"
    ),
    "train/router_loss": Meaning(
        "load-balancing loss of a mixture of experts as the model computes it, without its weight; not in train/loss "
        "(`model.policy.router_loss`)",
        "1",
    ),
    "train/learning_rate": Meaning("learning rate of the first parameter group in that step", "1"),
    "train/state/beta": Meaning(
        "the moving beta of an objective with state (EpsilonStep), after the step", "reward per nat"
    ),
    "train/state/delta": Meaning("the mean reward of all responses so far (BCO), after the step", "reward"),
    "train/state/gap_mean": Meaning("moving mean of h_w - h_l (BatchAdaptive), after the step", "nats"),
    "train/state/gap_deviation": Meaning("moving standard deviation of the same", "nats"),
}
"""Numbers that the training loop logs in addition to the means."""

FIGURES: dict[str, Meaning] = {
    "val/reliability/label": Meaning("reliability diagram of sigmoid(z) against the label that chosen is better", ""),
    "val/reliability/COLUMN": Meaning("the same against a column of probabilities, as in calibration@COLUMN", ""),
    "val/samples": Meaning("greedy responses to the first held-out prompts (callback `SampleTexts`)", ""),
}
"""Images and texts in TensorBoard."""
