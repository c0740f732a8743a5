"""Direct preference optimisation."""

from lit_pref.objectives.pairwise import Pairwise


class DPO(Pairwise):
    """Direct preference optimisation: the log-ratio to the reference is the reward, and pairs are classified by it.

        L = -log sigmoid(beta (h_w - h_l)),    h_y = log pi(y | x) - log pi_ref(y | x)

    The loss is ln 2 while the policy is its reference. Every part stays open, so that a combination of methods is `DPO`
    with parts named: MMPO over MRPO's references with epsilon-DPO's temperature is
    `DPO(target=MarginTarget(1.0), reference=Harmonic(), temperature=EpsilonStep())`.

    >>> DPO(beta=0.2).link
    Logistic()

    **Source**: DPO, arXiv 2305.18290, eq. 7; as in the authors' code, on sums over the response tokens (end token
    included). Their optional label smoothing is `target: Smoothed`, their `reference_free` is `reference: NoReference`.

    Args: those of `Pairwise`.
    """

    faithfulness = "code"
