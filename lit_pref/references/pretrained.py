"""A reference from a folder or hub name, with its own vocabulary or tokenizer where it has another than the policy."""

from typing import Any

from lit_pref.batch import PreferenceBatch
from lit_pref.errors import UserError
from lit_pref.models.prefix_sharing import enable_prefix_sharing, prefix_sharing_obstacle
from lit_pref.models.setting_names import refuse_settings_of_reference
from lit_pref.models.spec import ModelSpec
from lit_pref.references.own_tokenizer import refuse_too_long, retokenized, same_tokenizer
from lit_pref.references.reference import Reference
from lit_pref.references.shared_ids import shared_ids, vocabulary_size
from lit_pref.scores import Need, PairScores, TokenLogps
from lit_pref.scoring.head import Readout
from lit_pref.scoring.layout import Layout, as_padded
from lit_pref.scoring.scorer import Scorer


class Pretrained(Reference):
    """Another model, from a folder or the hub.

    If its tokenizer differs from the policy's, it reads the truncated text with its own tokenizer and chat template;
    then only sums of its log-probs can be compared with the policy's.

    Args:
        path: a local folder or a hub name; weights in safetensors, of a model or of a LoRA adapter.
        revision: branch, tag or commit on the hub.
        dtype: dtype of the weights: float32, bfloat16, float16 or float64.
        attention: attention implementation of transformers; the model's own by default.
        trust_remote_code: run code that comes with the model.
        base_model: folder or hub name of the model that an adapter in `path` is for; the one it names by default.
        head_precision: as of `model.policy`; comparisons of whole distributions are in the policy's.
        head_kernels: as of `model.policy`.

    >>> Pretrained("runs/sft").describe()
    'runs/sft, float32'
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        dtype: str = "float32",
        attention: str | None = None,
        trust_remote_code: bool = False,
        base_model: str | None = None,
        head_precision: str = "auto",
        head_kernels: bool = True,
    ) -> None:
        super().__init__()
        refuse_settings_of_reference(type(self).__name__, attention, head_precision)
        self.label = path if revision is None else f"{path}@{revision}"
        self._source = ModelSpec(
            path=path,
            base_model=base_model,
            revision=revision,
            dtype=dtype,
            attention=attention,
            trust_remote_code=trust_remote_code,
            head_precision=head_precision,
            head_kernels=head_kernels,
        )
        self._model = self._source
        self._tokenizer: Any = None  # the reference's own, if it is not the policy's
        self._positions: int | None = None
        self._shares = False
        self._refusal: str | None = None
        self._shared_ids: int | None = None  # the ids that are compared, if the policy has another number

    def attach(self, policy: ModelSpec, scorer: Scorer, tokenizer: Any) -> None:
        own, spec = self._source.load_tokenizer(), self._source
        self.scorer = Scorer(spec.build(), spec.head_precision, spec.head_kernels).eval().requires_grad_(False)
        self._shares = prefix_sharing_obstacle(self._source) is None
        if self._shares:
            enable_prefix_sharing(self.scorer.model)
        self.scorer.probe()
        size, policy_size = (vocabulary_size(s.model) for s in (self.scorer, scorer))
        if not same_tokenizer(own, tokenizer):
            self._tokenizer, self._positions = own, self._source.max_length()
            self._refusal = "has a tokenizer of its own"
        elif size != policy_size:
            used = max(tokenizer.get_vocab().values()) + 1
            self._shared_ids, words = shared_ids(self.label, size, policy_size, used)
            self._refusal, self.note = (words, None) if self._shared_ids is None else (None, words)

    def score(self, batch: PreferenceBatch, needs: frozenset[Need] = frozenset()) -> PairScores:
        """See `Reference.score`.

        Raises:
            UserError: token log-probs are needed in another tokenizer's tokens, or a text is too long for the model.
        """
        if self._tokenizer is not None and TokenLogps() in needs:
            raise UserError(
                f"the objective compares single tokens with those of the reference '{self.label}', which has a "
                "tokenizer of its own: use a reference with the policy's tokenizer"
            )
        return super().score(batch, needs)

    def as_read(self, batch: PreferenceBatch) -> PreferenceBatch:
        if self._tokenizer is not None:
            layout: Layout = "padded" if batch.rows.segments is None or not self._shares else "prefix_shared"
            batch = retokenized(batch, self._tokenizer, layout)
            refuse_too_long(batch, self.label, self._positions)
        return batch if self._shares else as_padded(batch)

    def frozen_spec(self, policy: ModelSpec) -> ModelSpec | None:
        return self._source

    def max_length(self, tokenizer: Any) -> int | None:
        # Tokens of another tokenizer are counted when a batch is retokenized.
        return self._source.max_length() if same_tokenizer(self._source.load_tokenizer(), tokenizer) else None

    def readout(self, batch: PreferenceBatch) -> Readout:
        if self._refusal is not None:
            raise UserError(
                f"EpsilonStep needs a reference with the policy's vocabulary, and '{self.label}' {self._refusal}: put "
                "InitialPolicy, AdapterOff or a model of the policy's family first"
            )
        if batch.rows.segments is not None and not self._shares:
            raise UserError(
                f"EpsilonStep compares the policy with '{self.label}' token by token, and that model cannot read the "
                "rows in which the policy reads a prompt once: set model.layout to padded"
            )
        readout = super().readout(batch)
        return readout if self._shared_ids is None else readout.first(self._shared_ids)

    def describe(self) -> str:
        return self._source.describe() + ("" if self._tokenizer is None else ", reads the text with its own tokenizer")
