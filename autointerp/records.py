"""Records that pass between rooms: Context, FeatureEvidence, Explanation, Score, Judgement, LLM; small and frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

Split = Literal["train", "test"]
Kind = Literal["activating", "random", "near"]
FeatureStatus = Literal["ok", "dead", "too_rare", "failed"]


# --- evidence about a feature -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Context:
    """A window of a document's tokens and one feature's activation on each of them."""

    feature: int
    example: int  # unique within the feature, over both splits
    split: Split  # explainers see train, scorers judge test
    kind: Kind  # activating, random (silent) or near (silent in the whole window, and a neighbouring feature fires)
    quantile: int | None  # of the window's maximum among the feature's firings, 0 = weakest; None when silent
    document: int  # of the corpus
    position: int  # of the window's first token in its document
    tokens: tuple[str, ...]  # joined, they are the text; of a character in several tokens all but the last are empty
    activations: tuple[float, ...]  # of the feature, on each of these tokens

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def fires(self) -> bool:
        return self.kind == "activating"

    @property
    def peak(self) -> float:
        return max(self.activations, default=0.0)


def pieces(tokens: Iterable[str], activations: Iterable[float]) -> list[tuple[str, float]]:
    """Each token that is not empty with its activation, to be shown. An empty one holds the beginning of a character:
    the token that ends the character has the larger activation of the two here."""
    shown: list[tuple[str, float]] = []
    begun: list[float] = []
    for token, activation in zip(tokens, activations):
        begun.append(activation)
        if token:
            shown.append((token, max(begun)))
            begun.clear()
    return shown


@dataclass(frozen=True, slots=True)
class TokenStat:
    """How one vocabulary token and one feature go together, counted over train documents."""

    token: str
    fired: int  # occurrences on which the feature fires
    seen: int  # occurrences in all
    mean: float  # mean activation where it fires


@dataclass(frozen=True, slots=True)
class Constituent:
    """A latent that a composite is the sum of, or one that stands in for it as a control."""

    feature: int
    coefficient: float  # f/‖f‖ ≈ Σ coefficient · g/‖g‖ over the decoder's rows
    explanation: str | None
    failure: str | None = None  # why it has no explanation
    contexts: tuple[Context, ...] = ()  # in which it fires, of the train split, strongest first
    union: bool = False  # `feature` is a row of the union dictionary


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A feature that lies near another one, by decoder cosine or by firing together."""

    feature: int
    similarity: float
    explanation: str | None = None
    contexts: tuple[Context, ...] = ()  # in which it fires and the other feature is silent; its own activations


@dataclass(frozen=True, slots=True)
class TokenActivations:
    """A text's tokens and one feature's activation on each."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class OutputEffects:
    """What a feature does to the subject's output, and what others do that are not near: tokens, or texts."""

    own: tuple[str, ...]  # strongest first; empty where nothing was seen
    others: tuple[tuple[str, ...], ...]  # those that share nothing with `own` first


@dataclass(frozen=True, slots=True)
class FeatureEvidence:
    """All that an explainer may see of a feature. Contexts are of the train split only."""

    feature: int
    firings: int  # tokens on which it fires, over the whole harvest
    frequency: float  # firings / tokens harvested
    max_activation: float  # over the whole harvest
    activating: tuple[Context, ...]  # strongest first
    random: tuple[Context, ...]  # drawn where it is silent
    near: tuple[Context, ...]  # near misses: it is silent, and a neighbour fires
    token_stats: tuple[TokenStat, ...] = ()  # most firings first; may leave out the rarest
    logits_up: tuple[tuple[str, float], ...] = ()  # tokens that W_dec[feature] raises most, with the logit weight
    logits_down: tuple[tuple[str, float], ...] = ()  # those that it lowers most
    train_firings: int | None = None  # all that `token_stats` counts from; None: what it lists is all
    constituents: tuple[Constituent, ...] = ()  # of a composite, for explainers that ask for them
    neighbours: tuple[Neighbour, ...] = ()  # nearest first, contexts of the train split, for explainers that contrast


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an explainer says of a feature: `text`, or None with the reason in `failure`."""

    text: str | None
    failure: str | None = None  # why there is no text
    raw: str | None = None  # the model's whole answer

    @property
    def status(self) -> Literal["ok", "failed"]:
        return "ok" if self.text else "failed"


@dataclass(frozen=True, slots=True)
class RandomWindows:
    """Windows of running text, drawn at random from test documents, and in which of them a feature fires."""

    tokens: Sequence[tuple[str, ...]]  # of each window
    fires: Sequence[bool]


# --- scores -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a scorer heard about one held-out example.

    A judged example has `truth` 1 or 0, `prediction` 1 or 0 and, where the judge gives one,
    `probability`. Where nothing answers Yes or No, the prediction is the evidence it is ranked by.
    A simulated token sequence has `truths` and `predictions` a token.
    An example that could not be judged has status "failed", no prediction, and the reason.
    """

    example: int  # of the `Context`; numbers of its own where the scorer made the example
    # a `Kind`, or how the scorer made it: marked, mismarked, intruder, neighbour, generated, neutral, output, …
    kind: str
    quantile: int | None  # of the `Context`
    truth: float  # 1 where the answer is Yes, else 0
    prediction: float | None  # 1 or 0, or the evidence that it is ranked by
    probability: float | None = None  # of Yes
    truths: tuple[float, ...] | None = None  # activations, a token each
    predictions: tuple[float, ...] | None = None  # the same as the judge has them, from 0 to 10
    status: Literal["ok", "failed"] = "ok"
    failure: str | None = None  # why it could not be judged
    text: str | None = None  # what was judged, where it is no window as it stands in contexts.parquet


@dataclass(frozen=True, slots=True)
class Score:
    """One scorer's verdict on one explanation, with a 95 % interval; None where nothing could be scored. A value of
    too few examples or documents has no interval.

    `chance` is the mean `value` of a judge who knows nothing, by permutation of the labels; `corrected` is
    (value − chance) / (1 − chance), the headline: 0 at chance, 1 at best.
    """

    value: float | None  # the measure that the scorer is read by
    low: float | None  # of the 95 % interval
    high: float | None
    n_scored: int  # examples that were judged
    n_unscored: int  # examples whose judgement was lost or unreadable
    base_rate: float | None  # share of the scored examples that are positive
    metrics: Mapping[str, float | None] = field(default_factory=dict)  # further columns of scores.parquet
    judgements: tuple[Judgement, ...] = ()  # all that were asked for, lost ones too
    failure: str | None = None  # why there is no value
    chance: float | None = None  # mean value of a judge who knows nothing
    corrected: float | None = None  # the value against that chance
    yes_rate: float | None = None  # share of the judged examples that the judge says Yes to
    ece: float | None = None  # expected calibration error of its probabilities, of its answers where it gives none


# --- language models --------------------------------------------------------------------------

Capability = Literal["choices", "slots", "schema"]


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of the conversation that a model is sent."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer in text, or None with the reason: a failure is a value, not an exception."""

    text: str | None
    failure: str | None = None
    retryable: bool = False  # the failure may pass: asking again later makes sense
    truncated: bool = False  # cut at max_tokens


@dataclass(frozen=True, slots=True)
class Choices:
    """Next-token probabilities over the offered answers, normalised to 1 among them.

    `mass` is what the model gave to all of them together, before normalising: near 0, the model
    wanted to say something else. None where nothing could be read, with the reason.
    """

    probabilities: tuple[float, ...] | None
    mass: float | None = None
    failure: str | None = None
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Weight:
    """How likely a text is as the next thing said: its log probability in nats, over so many tokens of the model.

    None where nothing could be read, with the reason.
    """

    logprob: float | None
    tokens: int = 0
    failure: str | None = None
    retryable: bool = False


@runtime_checkable
class LLM(Protocol):
    """A language model as explainers and scorers see it: cached, retried, counted and within budget.

    Prompts keep what is shared first, so that a cached prefix serves many requests: the same system
    message and examples for all features, then what is of one feature, then what is of one example.
    """

    @property
    def model(self) -> str:
        """Its name, as the config gives it."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do beside text: "choices" and "slots" below, and "schema", structured output."""
        ...

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        schema: Mapping[str, object] | None = None,  # JSON schema, used where the endpoint has structured output
        stop: Sequence[str] = (),
        attempt: int = 0,  # a repeat of the same question that wants a fresh answer
    ) -> Completion:
        """An answer of at most `max_tokens` tokens. What was answered once is read from the cache."""
        ...

    async def choose(self, messages: Sequence[Message], answers: Sequence[str]) -> Choices:
        """Probabilities of each answer as the next thing said. Needs the capability "choices"."""
        ...

    async def fill(
        self, messages: Sequence[Message], segments: Sequence[str], filler: str, answers: Sequence[str]
    ) -> Sequence[Choices]:
        """Probabilities of each answer after each segment, in one forward pass. Needs "slots".

        The assistant's turn reads ``segments[0] + filler + segments[1] + filler + …``; the result has,
        for each segment, the distribution over `answers` at the place of its filler.
        """
        ...

    async def weigh(self, messages: Sequence[Message], text: str) -> Weight:
        """The log probability of `text` as the assistant's turn. Needs "slots": probabilities of prompt tokens."""
        ...
