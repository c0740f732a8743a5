"""Choosing training pairs before training: what policy and reference say of them is read from the store."""

from typing import TYPE_CHECKING

import numpy as np

from lit_pref.data.prepared.pair_view import PairView
from lit_pref.data.selection.selection import Choice, Logps, Pool, Selection
from lit_pref.errors import UsageError, UserError
from lit_pref.modules.distributed import refuse
from lit_pref.modules.opening import ReferencePreparation, say
from lit_pref.references.reference import InitialPolicy, Pretrained, Reference
from lit_pref.references.stored import Stored

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule


def chosen_of(module: "PreferenceModule", pairs: PairView, selection: Selection) -> tuple[Pool, Choice]:
    """What is known of the pairs, and which of them are kept; the same on every rank.

    Args:
        module: with its Trainer; it has no model yet.
        pairs: of the training split, all of them.
        selection: what is wanted.

    Raises:
        UserError: a pair cannot be scored, or the selection and these pairs do not fit.
    """
    # The company in which a reference reads a pair, where its numbers depend on that.
    module.decide_layout(pairs.lengths)
    try:
        pool = pool_of(module, pairs, selection)
        choice = selection.choose(pool)
    except UsageError:
        raise
    except UserError as error:
        refuse(module.trainer, str(error))
    return pool, module.trainer.strategy.broadcast(choice)


def pool_of(module: "PreferenceModule", pairs: PairView, selection: Selection) -> Pool:
    """What a selection reads of the pairs, and their margins where they have some.

    Raises:
        UsageError: they lack a column or a response, or there is no such reference.
    """
    names = {"margin", selection.margin_column or "margin"}
    if unknown := names - {"margin", *pairs.columns}:
        (name,) = unknown
        raise UsageError(
            f"data.selection.margin_column is `{name}`, which is not among the columns that are carried "
            f"({', '.join(pairs.columns) or 'none'}); add it to data.columns"
        )
    policy = reference = None
    if selection.reads_policy:
        _refuse_one_sided(module, pairs, selection)
        policy = _logps(module, InitialPolicy(), "selection (policy)", pairs)
    if selection.reference is not False:
        reference = _logps(module, _reference(module, selection), "selection (reference)", pairs)
    return Pool(
        ids=pairs.ids,
        prompts=pairs.column("prompt_id"),
        places=pairs.column("place"),
        columns={name: pairs.column(name).astype(np.float64) for name in sorted(names)},
        policy=policy,
        reference=reference,
    )


def summary(pool: Pool, choice: Choice, selection: Selection) -> str:
    """One line: what was kept."""
    kept = choice.scores[choice.indices]
    of = f"{len(kept):,} of {len(pool.ids):,} pairs ({len(kept) / len(pool.ids):.1%})"
    return (
        f"{selection!r}: kept {of}, score from {kept.min():.4g} to {kept.max():.4g}, {choice.tied:,} ties at the edge"
    )


def say_choice(pool: Pool, choice: Choice, selection: Selection) -> str:
    """Print what was kept, and every warning; the line."""
    line = summary(pool, choice, selection)
    say(f"selection   {line}")
    for note in selection.notes(pool):
        say(f"warning     selection: {note}")
    return line


def _logps(module: "PreferenceModule", reference: Reference, label: str, pairs: PairView) -> Logps:
    """What a frozen model says of all responses, from the store; what it lacks is computed first, shared by ranks."""
    limit = reference.max_length(module.policy.load_tokenizer())
    if limit is not None and pairs.longest > limit:
        raise UserError(
            f"the longest pair has {pairs.longest} tokens, and {reference.describe()}, which data.selection reads, "
            f"takes at most {limit}: lower data.max_length"
        )
    source = reference.frozen_spec(module.policy)
    if source is None or source.trust_remote_code:
        why = "moves" if source is None else "runs code of its own, by which no score can be named"
        raise UsageError(
            f"data.selection reads scores through the store, and the {label} {why}: choose the pairs with a model that "
            "does not"
        )
    opening = ReferencePreparation.of(module, Stored(reference, module.policy), label, [(pairs, np.arange(len(pairs)))])
    wanted = opening.fill()
    keys = opening.table["keys"][: len(pairs)]  # further responses to the same prompts may follow
    rows = np.stack([wanted.rows(list(side)) for side in keys.T], axis=1)
    return Logps(wanted.scores[rows], wanted.lengths[rows])


def _reference(module: "PreferenceModule", selection: Selection) -> Reference:
    if isinstance(selection.reference, str):
        reference: Reference = Pretrained(selection.reference)
    elif not module.references:
        raise UsageError(
            f"data.selection: {type(selection).__name__} compares with the run's first reference, and "
            f"{type(module.objective).__name__} reads none; name one (data.selection.reference FOLDER)"
        )
    else:
        first = module.references[0]
        reference = first.reference if isinstance(first, Stored) else first
    source = reference.frozen_spec(module.policy)
    if source is not None and source.fingerprint() == module.policy.base().fingerprint():
        raise UsageError(
            "data.selection: the reference is the policy itself before its first step, so every implicit margin is 0; "
            "name the model that the policy was trained from (data.selection.reference FOLDER), or set "
            "data.selection.reference to false"
        )
    return reference


def _refuse_one_sided(module: "PreferenceModule", pairs: PairView, selection: Selection) -> None:
    if not (pairs.lengths[:, 2] > 0).all():
        raise UsageError(
            f"data.selection: {type(selection).__name__} reads both responses, and {type(module.objective).__name__} "
            "only the chosen ones; choose by Random or ExplicitMargin, or write a file of chosen pairs with `python -m "
            "lit_pref select` and an objective of pairs"
        )
