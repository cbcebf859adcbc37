"""The config of a run: every section and key of the YAML file, with its default, checked before anything starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autointerp.errors import ConfigError
from autointerp.overrides import read_yaml, set_key
from autointerp.redact import has_key_prefix, hide, looks_like_key, names_in, secret_name, texts_in
from autointerp.registry import did_you_mean, look_in

NOT_IN_KEYS = "a stage's key holds the values of its section, not the code that read them"

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # ways of accelerate to place a model's modules


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SubjectConfig(Section):
    """The language model under study."""

    model: str  # catalogue name, hub id or local folder
    hook: str | None = None  # TransformerLens name or HF module path; None: what the SAE was trained on
    device: str = "auto"  # cpu, cuda, cuda:1; auto: a GPU where there is one
    # in the place of device, for a model that one GPU does not hold: auto, balanced, balanced_low_0 or sequential, or
    # where each module lies: {model.layers.0: 0, …}, a GPU's number, cpu or disk (docs/scale.md)
    device_map: str | dict[str, int | str] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights
    revision: str | None = None  # of the hub's repository
    hook_out: str | None = None  # where a transcoder's output belongs; None: what it was trained on
    compile: bool = False  # its blocks through torch.compile: a little faster, for some seconds at the start
    batch_tokens: int = Field(default=8192, ge=1)  # tokens in one forward pass
    # trained; redrawn:SEED: every tensor drawn anew with its own mean and spread; redrawn_blocks:SEED: embeddings kept
    weights: str = Field(default="trained", pattern=r"^(trained|redrawn(_blocks)?:[0-9]+)$")

    @model_validator(mode="after")
    def lies_in_one_way(self) -> SubjectConfig:
        where = self.device_map
        if isinstance(where, str) and where not in SPREAD:
            raise ValueError(f"device_map {where!r} is neither {', '.join(SPREAD)} nor a mapping of modules to devices")
        for place in where.values() if isinstance(where, dict) else ():
            if not re.fullmatch(r"\d+|cpu|disk", str(place)):
                raise ValueError(f"device_map: {place!r} is no place for a module: give a GPU's number, cpu or disk")
        if where is not None and (self.device != "auto" or self.compile):
            raise ValueError("device_map says where the subject lies: leave out device and compile, or device_map")
        return self


class CorpusConfig(Section):
    """Text, tokenised once."""

    source: str  # catalogue name, hub id, a local .txt, .jsonl, .parquet file or folder, or a cache of delphi's
    name: str | None = None  # a hub dataset's configuration
    split: str = "train"  # of a hub dataset
    text_column: str = "text"  # which holds the documents
    tokens: int = Field(default=1_000_000, ge=1)  # how much text the features are harvested on
    context: int = Field(default=128, ge=2)  # tokens in a row, BOS included
    bos: bool | None = None  # None: as the subject was trained
    seed: int | None = None  # of sampled text; None: the run's seed


class NeuronsConfig(Section):
    """A model's own neurons as features."""

    signed: bool = False  # latent d + i fires where neuron i is negative; else what is negative is silent
    k: int | None = Field(default=None, ge=1)  # only the k strongest fire on a token; None: all above 0


class SaeConfig(Section):
    """The SAE: exactly one of `load`, `train` and `neurons`."""

    load: str | None = None  # local path, hub id (ORG/REPO@REVISION:FOLDER) or SAELens' release/sae_id
    format: str | None = None  # detected when not named
    train: dict[str, Any] | None = None  # the keys of sae.train, which are TrainConfig's
    stream: bool = False  # with train: activations come from the subject as they are needed, and none are stored
    # activations of more than so many times the median norm (attention sinks) are left out; null: none
    outlier_norm: float | None = Field(default=10.0, gt=1)
    neurons: NeuronsConfig | None = None  # no SAE: the activations at subject.hook; true: with nothing set

    @field_validator("neurons", mode="before")
    @classmethod
    def switched(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def one_of(self) -> SaeConfig:
        if [self.load is None, self.train is None, self.neurons is None].count(False) != 1:
            raise ValueError("give exactly one of sae.load, sae.train and sae.neurons")
        if self.stream and self.train is None:
            raise ValueError("sae.stream is of sae.train: an SAE that is loaded is not trained")
        return self

    @property
    def stores_activations(self) -> bool:
        """The run keeps the corpus' activations on disk, to train on."""
        return self.train is not None and not self.stream


class RedrawnSae(SaeConfig):
    """The run's own SAE with its directions drawn anew: of the control `random_sae`, and in no file."""

    seed: int


class FeaturesConfig(Section):
    """Which features are explained."""

    # top: most firings first; composites: confirmed ones, then composite, then possible
    select: Literal["random", "first", "top", "all", "composites"] = "random"
    count: int = Field(default=100, ge=1)  # how many
    constituents: bool = (
        False  # the constituents of selected composites too, beyond count; those of composites.union too
    )
    ids: list[int] | None = None  # just these, whatever select and count say
    min_firings: int = Field(default=60, ge=1)  # fewer: status too_rare


class LentFeatures(FeaturesConfig):
    """The latents of the union dictionary of which the run's composites are sums: of the branch `union`, in no file."""


class ContextsConfig(Section):
    """Windows of text that explainers see (train) and that scorers judge (test)."""

    window: int = Field(default=32, ge=2)  # tokens
    quantiles: int = Field(default=5, ge=1)  # strata of activating windows by their maximum, of equal size
    train: int = Field(default=20, ge=1)  # activating windows an explainer may see; as many silent ones
    test_activating: int = Field(default=50, ge=1)  # held-out windows in which the feature fires
    test_random: int = Field(default=25, ge=0)  # held-out windows in which it is silent
    test_near: int = Field(default=25, ge=0)  # hard negatives: it is silent and a neighbour fires
    neighbours: int = Field(default=10, ge=1)  # features near by decoder cosine whose contexts are near misses
    test_share: float = Field(default=0.5, gt=0, lt=1)  # of documents


class CalibrationConfig(Section):
    """Train windows of a few features on which each judge's Yes is calibrated, for the scores of the others."""

    features: int = Field(default=8, ge=0)  # at most, for each scorer and explainer; 0: judges are not calibrated
    windows: int = Field(default=24, ge=2)  # of each, at most; half of them true


class LLMConfig(Section):
    """Which language model answers, and how it is asked."""

    model: str  # catalogue name, vllm:ORG/NAME, a local folder, or a model behind base_url
    backend: str | None = None  # None: the word before a colon in model, else openai with a base_url, else local
    base_url: str | None = None  # any OpenAI-compatible endpoint
    replicas: list[str] = []  # other addresses of the same model: a request goes to the one that has the fewest
    api_key_env: str | None = "OPENAI_API_KEY"  # the variable's name, never the key
    headers: dict[str, str] = {}  # sent with each request; "$NAME" stands for an environment variable
    extra_body: dict[str, Any] = {}  # keys that are added to each request's JSON; "$NAME" as in headers
    reasoning_effort: str | None = None  # of models that think first
    answer_tokens: int | None = Field(default=None, ge=1)  # most tokens of an answer; None: as each plug-in asks
    concurrency: int = Field(default=16, ge=1)  # requests in flight at most; falls and rises with rate limits
    timeout: float = Field(default=120.0, gt=0)  # seconds for one whole answer
    retries: int = Field(default=8, ge=0)  # of rate limits and retryable errors, each with a growing pause
    max_retry_after: float = Field(default=300.0, gt=0)  # seconds waited at most when an endpoint asks for a pause
    logprobs: bool | None = None  # token probabilities; None: tried once; without them: docs/endpoints.md
    batch: int = Field(default=16, ge=1)  # in-process: sequences in one forward pass
    device: str = "auto"  # in-process and vLLM
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"  # in-process and vLLM: of the weights
    price_in: float | None = Field(default=None, ge=0)  # per million prompt tokens; None: the listed price
    price_out: float | None = Field(default=None, ge=0)  # per million answer tokens
    max_requests: int | None = Field(default=None, ge=0)  # spending limits of a run: it stops cleanly there
    max_tokens: int | None = Field(default=None, ge=0)  # of prompts and answers together
    max_cost: float | None = Field(default=None, ge=0)  # in the unit of the prices
    server_args: list[str] = []  # of the vLLM server that the run starts
    env: dict[str, str] = {}  # environment variables of that server

    @model_validator(mode="after")
    def replicas_are_of_something(self) -> LLMConfig:
        if self.replicas and self.base_url is None:
            raise ValueError("replicas are further addresses of the model at base_url, which is missing")
        return self

    @field_validator("api_key_env")
    @classmethod
    def names_a_variable(cls, value: str | None) -> str | None:
        if value is None or value in os.environ:
            return value
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or looks_like_key(value):
            raise ValueError("this is the name of an environment variable that holds the key, not the key itself")
        return value

    @field_validator("headers", "extra_body")
    @classmethod
    def secrets_are_variables(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, text in texts_in(value):
            if (secret_name(name) or has_key_prefix(text)) and not text.startswith("$"):
                raise ValueError(f"write the value of {name!r} as $NAME, an environment variable: it may be a secret")
        return value


# keys of `llm` that hold secrets by right, or are checked by a rule of their own
PRIVATE = frozenset({"base_url", "replicas", "server_args", "env", "headers", "extra_body", "api_key_env"})


class PluginConfig(Section):
    """One explainer, scorer or control: its registered name or dotted path, and its own options beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str  # registered name, or dotted path to a function
    label: str | None = None  # what the tables call it; the name when None
    llm: LLMConfig | None = None  # its own language model; None: the run's

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name", "label")
    @classmethod
    def names_a_folder(cls, value: str | None) -> str | None:
        """It becomes a part of folder names."""
        if value is None:
            return value
        if not value or not value.isprintable() or len(value) > 150:
            raise ValueError(f"{value[:40]!r} cannot be a folder's name: use 1 to 150 letters, digits and signs")
        if value.startswith(".") or ".." in value or "/" in value or "\\" in value:
            raise ValueError(
                f"{value!r} becomes a folder's name: it may not begin with a dot nor hold '/', '\\' or '..'"
            )
        return value

    @property
    def key(self) -> str:
        return self.label or self.name

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class SemanticConfig(Section):
    """Whether explanations of composites entail those of their constituents, by a judge."""

    explainer: str | None = None  # whose explanations; None: the first that does not itself read constituents'
    llm: LLMConfig | None = None  # None: the run's
    search: bool = False  # by concept too: are the latents whose explanations it entails its constituents?


class CausalConfig(Section):
    """Whether composites are used as sums of their constituents, by what ablating and steering do to the subject."""

    count: int = Field(default=100, ge=1)  # composites that are tried: confirmed ones first
    tokens: int = Field(default=24, ge=8)  # on which each is ablated, and on which it is steered
    hook: str | None = None  # where effects are looked at too; None: the last block's hook_resid_post
    sae: str | None = None  # a later SAE of the subject, whose latents are compared there


class CompositesConfig(Section):
    """The check for composite features."""

    enabled: bool = True  # false: no latent is checked
    union: str | None = None  # another SAE of the same activations, as extra candidates; it is harvested too
    neighbours: int = Field(default=32, ge=2)  # nearest decoder rows that are tried as constituents
    tokens: int = Field(default=400, ge=1)  # on which a latent is tested, at most; 100 are needed
    semantic: SemanticConfig | None = None  # six calls a composite of two; true: with nothing set
    causal: CausalConfig | None = None  # 24 passes over `tokens` rows a composite; true: with nothing set

    @field_validator("semantic", "causal", mode="before")
    @classmethod
    def switched(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value


class EvaluationConfig(Section):
    """What `evaluate` measures an SAE on: documents from the corpus' end."""

    tokens: int = Field(default=50_000, ge=1)  # how much text
    context: int | None = Field(default=None, ge=2)  # tokens in a row, BOS included; None: corpus.context


class ExecutorConfig(Section):
    """Where the work is done."""

    kind: Literal["local", "ray"] = "local"  # in this process, or by workers on a Ray cluster
    address: str = "auto"  # of the Ray cluster, HOST:PORT; auto: the one that this machine is part of; local: a new one
    num_gpus: float | None = Field(default=None, ge=0)  # GPUs of a worker; None: 1 where the cluster has any, else 0
    num_cpus: float = Field(default=1, gt=0)  # processor cores of a worker
    max_workers: int | None = Field(default=None, ge=1)  # None: as many as the cluster has room for
    shard_tokens: int = Field(default=500_000, ge=1)  # text in a shard, at most: what a lost worker can cost


class TrackingConfig(Section):
    """Weights & Biases or MLflow: a run, and the training of its SAE, are logged there too."""

    to: Literal["wandb", "mlflow"]  # their own environment variables say who you are, and WANDB_MODE=offline
    project: str  # of Weights & Biases; MLflow's experiment
    name: str | None = None  # of the run there; None: the run's own
    uri: str | None = None  # of MLflow's server; None: as MLFLOW_TRACKING_URI says

    @model_validator(mode="after")
    def can_be(self) -> TrackingConfig:
        if self.uri is not None and self.to != "mlflow":
            raise ValueError("uri is MLflow's: of Weights & Biases WANDB_BASE_URL says the address")
        if "@" in (self.uri or ""):
            raise ValueError("keep name and password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        return self


class Config(Section):
    """The top level of a config."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # of the run and its folder in results/
    seed: int = 0  # of every draw
    subject: SubjectConfig
    corpus: CorpusConfig
    sae: SaeConfig
    features: FeaturesConfig = FeaturesConfig()
    contexts: ContextsConfig = ContextsConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    llm: LLMConfig | None = None
    explainers: list[PluginConfig] = [PluginConfig(name="default")]
    scorers: list[PluginConfig] = [
        PluginConfig(name=name) for name in ("detection", "simulation", "lexical", "lexical_shown")
    ]
    controls: list[PluginConfig] = [PluginConfig(name="other_feature")]
    composites: CompositesConfig = CompositesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    executor: ExecutorConfig = ExecutorConfig()
    tracking: TrackingConfig | None = None

    @model_validator(mode="after")
    def composites_are_known(self) -> Config:
        wanted = "composites" if self.features.select == "composites" else "constituents"
        if not self.composites.enabled and (wanted == "composites" or self.features.constituents):
            raise ValueError(f"features asks for {wanted}, and composites.enabled is false")
        return self

    @model_validator(mode="before")
    @classmethod
    def holds_no_key(cls, raw: Any) -> Any:
        """Names and options stand in tables, reports and logs. What goes to a server alone has places of its own."""
        if any(map(has_key_prefix, names_in(raw))):
            raise ValueError("a name in the config looks like an API key: keep it in an environment variable")
        for name, text in texts_in(raw, but=PRIVATE):
            if secret_name(name):  # an option of a plug-in: it needs it, and nobody else
                hide(text)
            if has_key_prefix(text):
                raise ValueError(f"the value of {name!r} looks like a key: keep it in an environment variable")
        return raw

    @field_validator("explainers", "scorers", "controls")
    @classmethod
    def distinct(cls, plugins: list[PluginConfig]) -> list[PluginConfig]:
        keys = [plugin.key for plugin in plugins]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is named twice; give each its own label")
        return plugins


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file (or the name of one in ``pipelines/``), apply ``{"key.path": value}``, check it."""
    raw, file = read_config(path)
    if "variants" in raw:
        raise ConfigError(f"{file} has variants, it is no single run: autointerp sweep {path}")
    return resolve_config(raw, overrides or {}, str(file))


def read_config(path: str | Path) -> tuple[dict[str, Any], Path]:
    """The keys of a YAML file as they stand there, unchecked, and the file."""
    from autointerp.resources import find_pipeline

    file = find_pipeline(str(path))
    raw = read_yaml(file)
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: a config is a mapping of keys, this is {type(raw).__name__}")
    look_in(file.parent)
    anchor(raw, file.parent)
    return raw, file


def resolve_config(raw: dict[str, Any], overrides: Mapping[str, Any], where: str) -> Config:
    """`raw` (changed in place) with ``{"key.path": value}`` applied, checked."""
    for key, value in overrides.items():
        set_key(raw, key, value)
    return parse_config(raw, where=where)


_PATHS = (("subject", "model"), ("corpus", "source"), ("sae", "load"), ("composites", "union"))


def anchor(raw: dict[str, Any], folder: Path) -> None:
    """Paths in the file that lie beside it are made independent of the working directory."""
    places = [(raw.get(section), key) for section, key in _PATHS]
    for kind in ("explainers", "scorers", "controls"):
        plugins = raw.get(kind)
        places += [(plugin, "path") for plugin in plugins] if isinstance(plugins, list) else []
    for given, key in places:
        path = given.get(key) if isinstance(given, dict) else None
        if isinstance(given, dict) and isinstance(path, str) and not Path(path).exists() and (folder / path).exists():
            given[key] = str((folder / path).resolve())


def parse_config(raw: dict[str, Any], where: str = "config") -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(problem(e) for e in error.errors())) from None


def problem(error: Any, model: type[BaseModel] = Config, prefix: str = "") -> str:
    """One pydantic error as one clause; an unknown key names the nearest known one."""
    path = prefix + ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {path!r}{did_you_mean(str(error['loc'][-1]), _keys_at(model, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"missing key {path!r}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _keys_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Known keys of the section at `location`."""
    import typing

    section: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        if part not in section.model_fields:
            return []
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *typing.get_args(annotation)]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if section is None:
            return []
    return list(section.model_fields)
