"""Multi-reference preference optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.reference import Harmonic


class MRPO(Pairwise):
    """Multi-reference preference optimisation: DPO against a clipped harmonic mean of K references.

        L = -log sigmoid(beta [(l_w - l_l) - (log pi~_w - log pi~_l)]),    log pi~ as in `Harmonic`

    The first reference is the anchor: the policy's own initial model. One reference gives DPO.

    >>> MRPO().reference
    Harmonic(eta=0.1, adaptive=True, weights=None, arwc_swap=False)

    **When**: several good models are at hand and there are few pairs. Not before DPO on each reference alone was tried.

    **Source**: MRPO, arXiv 2405.16388. The closed form is derived from the objective's lower bound, clipping and
    weights are taken from thaihungle/MRPO and extended from 2 to K references; `Harmonic` lists the differences.
    In that code the second reference reads the policy's token ids, whatever its own tokenizer is; here every reference
    reads the text. In an independent study (arXiv 2512.10040) most single references beat every mixture of them:
    compare with `DPO` on each reference alone.

    Args:
        beta: > 0, reward units per nat.
        eta: relative width of the interval around the anchor's log-prob, >= 0.
        adaptive: divide eta between the responses by their log-probs.
        weights: K relative weights >= 0, or None for adaptive ones.
        arwc_swap: exchange the adaptive weights, as the official code does; two references at most.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "references and temperature"

    def __init__(
        self,
        beta: float = 0.1,
        eta: float = 0.1,
        adaptive: bool = True,
        weights: list[float] | None = None,
        arwc_swap: bool = False,
        **parts: Any,
    ) -> None:
        reference = Harmonic(eta=eta, adaptive=adaptive, weights=weights, arwc_swap=arwc_swap)
        super().__init__(beta=beta, reference=reference, **parts)
