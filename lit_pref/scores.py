"""Scores of responses, optional statistics of them, and the output of objectives.

Letters: **B** pairs, **T** tokens of a response, **V** vocabulary (see `lit_pref.pairs`).
"""

from dataclasses import dataclass, field

from torch import Tensor

from lit_pref.device_data import DeviceData


@dataclass(frozen=True)
class TokenLogps:
    """Log-prob of every response token, nats; a zero-padded (B, T) tensor. Needs no reference."""


@dataclass(frozen=True)
class Tilt:
    """Sequence sums of log softmax((1 + epsilon) f - epsilon g)[y] - log softmax(f)[y]; (B,), nats.

    f are the policy's logits and g those of the first reference, both over the ids that both models have: padding of
    the vocabulary that one of them lacks is left out on both sides. It is computed from f - g, so that it keeps its
    sign where the policy is near the reference and the two log-probs agree in nearly all their digits.
    """

    epsilon: float


@dataclass(frozen=True)
class TiltSlope:
    """Derivative of `Tilt` at epsilon = 0: sequence sums of d_y - Σ_v p_v d_v, d = f - g; (B,), nats.

    It is the log-ratio of the response minus the summed next-token KL(policy || reference).
    """


@dataclass(frozen=True)
class Kl:
    """Sequence sums of KL(policy || reference) of the next-token distributions; (B,), nats."""


@dataclass(frozen=True)
class ReferenceKl:
    """Sequence sums of KL(reference || policy) of the next-token distributions; (B,), nats, with gradient."""


@dataclass(frozen=True)
class Entropy:
    """Sequence sums of the next-token entropy `-Σ_v p_v log p_v`; (B,), nats. Needs no reference."""


@dataclass(frozen=True)
class SumSquares:
    """Sequence sums of `Σ_v p_v²`, the probability that two draws of the next token agree; (B,). Needs no reference."""


@dataclass(frozen=True)
class LogSumSquares:
    """Sequence sums of `log Σ_v p_v²`; (B,), nats. Needs no reference."""


@dataclass(frozen=True)
class TopOne:
    """Number of response tokens that are the arg max of their distribution, ties included; (B,). Needs no reference."""


@dataclass(frozen=True)
class TokenRewards:
    """The scalar head's output at every response token; a zero-padded (B, T) tensor. For reward models only."""


@dataclass(frozen=True)
class PromptValue:
    """The value of each pair's prompt by a head that is trained beside the policy; (B,), with a gradient to that head.

    It is a statistic of the chosen side. `rate` is the head's own learning rate. For policies only.
    """

    rate: float


Need = (
    TokenLogps
    | TokenRewards
    | PromptValue
    | Tilt
    | TiltSlope
    | Kl
    | ReferenceKl
    | Entropy
    | SumSquares
    | LogSumSquares
    | TopOne
)
COMPARING_NEEDS = (Tilt, TiltSlope, Kl, ReferenceKl)
"""Needs that compare whole distributions, over the shared ids, and so require a live reference with the policy's
tokenizer."""


@dataclass
class SequenceScores(DeviceData):
    """One response of each pair: `scores` (B,) fp32 (policy: summed log-prob in nats), `lengths` (B,) in tokens.

    `statistics` maps each requested need to its values.
    """

    scores: Tensor  # (B,)
    lengths: Tensor  # (B,)
    statistics: dict[Need, Tensor] = field(default_factory=dict)


@dataclass
class PairScores(DeviceData):
    """The scores of both responses; `rejected` is None for one-sided data, `extra_response` if none is read.

    `log_probs` is False for the scores of a reward model, which are not log-probs.
    `router_loss` is the load-balancing loss of a mixture of experts in training, () with gradient, if it is added.
    """

    chosen: SequenceScores
    rejected: SequenceScores | None
    extra_response: SequenceScores | None = None
    log_probs: bool = True
    router_loss: Tensor | None = None


@dataclass
class ObjectiveOutput:
    """The result of an objective: unreduced `losses` (B,) with gradient, detached rewards (B,), and values to log.

    `logged` maps a metric name to a detached (B,) tensor. Names that other code reads: `target` (the probability that
    the loss fits), `target_entropy` (nats), `beta`.
    """

    losses: Tensor  # (B,)
    chosen_rewards: Tensor  # (B,)
    rejected_rewards: Tensor | None  # (B,)
    logged: dict[str, Tensor] = field(default_factory=dict)
