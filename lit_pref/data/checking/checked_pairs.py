"""The checked pairs of a source, in order: mapped, oriented, filtered, split by prompt, named."""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lit_pref.data.checking.fields import LeftOut
from lit_pref.data.checking.row_reader import RowReader, TextPair
from lit_pref.data.checking.text_pair import canonical
from lit_pref.data.formats.load import RowMapping
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.source import Source, read_source
from lit_pref.errors import UserError

SPLITS = ("train", "validation")
Refuse = Callable[[BadRow, str], None]


def in_validation(prompt: Any, val_fraction: float, split_seed: int) -> bool:
    """Whether the pairs of this prompt go to validation: iff hash(split_seed, prompt) < val_fraction.

    All pairs of a prompt stay together, and further rows move no prompt from one side to the other.

    >>> sum(in_validation(f"prompt {k}", val_fraction=0.1, split_seed=0) for k in range(1000))
    94
    """
    if not val_fraction:
        return False
    text = json.dumps([split_seed, prompt], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < val_fraction * 2**64


@dataclass(frozen=True)
class CheckedPair:
    """A native row, its texts, its id, and whether it is of the split "train" or "validation"."""

    row: Row
    text: TextPair
    id: str
    split: str


@dataclass
class CheckedPairs:
    """Reads the pairs of a source.

    Args:
        source: where the rows are.
        mapping: makes native rows of them.
        reader: makes a fresh checker of native rows: each reading of the source wants one.
        val_fraction: the share of prompts that goes to validation.
        split_seed: of the split by prompt.
        drop_ties: leave out pairs of equal strength.
    """

    source: Source
    mapping: RowMapping
    reader: Callable[[], RowReader]
    val_fraction: float
    split_seed: int
    drop_ties: bool

    def read(
        self, refuse: Refuse | None = None, reports: Mapping[str, PreparationReport] | None = None
    ) -> Iterator[CheckedPair]:
        """The pairs, in order.

        Args:
            refuse: is told of a faulty row and its split; None passes over it.
            reports: of each split, in which rows are counted.
        """
        refuse = refuse or _pass_over
        reports = reports or {split: PreparationReport() for split in SPLITS}
        cap = self.mapping.filters.max_pairs_per_prompt
        bounds = {} if cap is None else self._bounds(cap)
        ids = _Ids()
        lots = _Lots(self.mapping.filters.seed)
        for row, text, split in self._texts(refuse, reports):
            if cap is not None and lots.draw(text) > bounds[text.prompt_id]:
                reports[split].capped += 1
                continue
            id, repeated = ids.of(row, text)
            reports[split].repeated += repeated
            yield CheckedPair(row, text, id, split)

    def _texts(self, refuse: Refuse, reports: Mapping[str, PreparationReport]) -> Iterator[tuple[Row, TextPair, str]]:
        reader = self.reader()

        def refuse_line(bad: BadRow) -> None:
            reports["train"].rows += 1  # what cannot be read has no prompt by which it could be held out
            refuse(bad, "train")

        def rows() -> Iterator[Row]:
            for row in read_source(self.source):
                if isinstance(row, Row):
                    yield row
                else:
                    refuse_line(row)

        for row in self.mapping.native(rows()):
            if isinstance(row, LeftOut):
                reports["train"].rows += 1
                reports["train"].left_out[row.kind] += 1
                continue
            if isinstance(row, BadRow):
                refuse_line(row)
                continue
            held_out = in_validation(canonical(row.values.get("prompt")), self.val_fraction, self.split_seed)
            split = "validation" if held_out else "train"
            reports[split].rows += 1
            try:
                text = reader.read(row)
            except BadRow as bad:
                refuse(bad, split)
                continue
            if reason := self.mapping.left_out(text, row):
                reports[split].left_out[reason] += 1
                continue
            reports[split].ties += text.tie
            if text.tie and self.drop_ties:
                reports[split].ties_dropped += 1
                continue
            yield row, text, split

    def _bounds(self, cap: int) -> dict[str, bytes]:
        """Of every prompt, the lot of the last pair within the cap."""
        nearest: dict[str, list[_Last]] = {}
        lots = _Lots(self.mapping.filters.seed)
        reports = {split: PreparationReport() for split in SPLITS}
        for _, text, _ in self._texts(_pass_over, reports):
            kept = nearest.setdefault(text.prompt_id, [])
            add = heapq.heappush if len(kept) < cap else heapq.heappushpop
            add(kept, _Last(lots.draw(text)))
        return {prompt: kept[0].lot for prompt, kept in nearest.items()}


class _Lots:
    """Where pairs stand among those of their prompt: by chance, the same in every file and order.

    Equal pairs draw one after another, or a cap would keep all or none of them.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: Counter[bytes] = Counter()

    def draw(self, text: TextPair) -> bytes:
        pair = hashlib.sha256(json.dumps([self._seed, text.prompt, text.chosen, text.rejected]).encode()).digest()
        self._drawn[pair] += 1
        return hashlib.sha256(pair + self._drawn[pair].to_bytes(8)).digest()


def _pass_over(bad: BadRow, split: str) -> None:
    pass


class _Last:
    """Orders lots from the last to the first, for a heap whose top is the last."""

    def __init__(self, lot: bytes) -> None:
        self.lot = lot

    def __lt__(self, other: "_Last") -> bool:
        return self.lot > other.lot


class _Ids:
    """Stable ids: the row's own, or a hash of its texts with an ordinal for exact duplicates."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, row: Row, text: TextPair) -> tuple[str, bool]:
        """The id, and whether the same texts stood in the source before."""
        key = text.id
        if key is None:
            texts = json.dumps([text.prompt, text.chosen, text.rejected], sort_keys=True)
            key = hashlib.sha256(texts.encode()).hexdigest()[:16]
        before = self._seen.get(key)
        if before is not None and text.id is not None:
            raise UserError(
                f"{row.place}: the id {key!r} is that of line {before} too; make ids unique or remove the column `id`."
            )
        self._seen[key] = row.line if text.id is not None else (before or 0) + 1
        return (key, False) if before is None else (f"{key}-{before}", True)


def texts_of(pairs: Iterable[CheckedPair]) -> Iterator[str]:
    """The texts of pairs, for a tokenizer that is trained on them."""
    for pair in pairs:
        prompt = pair.text.prompt
        yield from [prompt] if isinstance(prompt, str) else (message["content"] for message in prompt)
        yield from (text for text in (pair.text.chosen, pair.text.rejected) if text is not None)
