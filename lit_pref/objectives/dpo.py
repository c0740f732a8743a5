"""Direct preference optimisation."""

from lit_pref.objectives.pairwise import Pairwise


class DPO(Pairwise):
    """Direct preference optimisation: classifies pairs by their rewards, the log-ratios to the reference.

        L = -log sigmoid(beta (h_w - h_l)),    h_y = log pi(y | x) - log pi_ref(y | x)

    The loss is ln 2 as long as the policy equals its reference. Every part can be replaced, so a combination of methods
    is `DPO` with other parts: MMPO over MRPO's references with epsilon-DPO's temperature is
    `DPO(target=MarginTarget(1.0), reference=Harmonic(), temperature=EpsilonStep())`.

    >>> DPO(beta=0.2).link
    Logistic()

    **When**: the first thing to try, and the baseline of everything else. Not if many labels are wrong, or if their
    strength is known: see `MMPO` then.

    **Source**: DPO, arXiv 2305.18290, eq. 7; as in the authors' code, on sums over the response tokens (end token
    included). Their optional label smoothing is `target: Smoothed`, their `reference_free` is `reference: NoReference`.

    Args: those of `Pairwise`.
    """

    faithfulness = "code"
    family = "basic"
