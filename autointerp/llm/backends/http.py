"""What LLM backends over HTTP share: API keys, connections, requests in the form that the endpoint takes."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import re
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from autointerp.config import LLMConfig
from autointerp.errors import ConfigError
from autointerp.llm.backend import RetryableFailure
from autointerp.llm.backends.failures import Failures, Refused
from autointerp.llm.backends.wire import Wire
from autointerp.records import Message
from autointerp.redact import VARIABLE, hide, not_harmless, public_url, secrets_of

log = logging.getLogger("autointerp.llm")

PROBE = "Is water wet? Answer Yes or No."  # what is asked to find out what an endpoint can do
QUESTION = (Message("user", PROBE),)
_DROPPABLE = ("temperature", "seed", "stop", "stop_sequences")  # parameters that a request can do without


REST = 10.0  # seconds for which an address that failed is asked only where all others did


@dataclass
class Replica:
    """One address of the model."""

    wire: Wire
    busy: int = 0  # requests on their way
    rests_until: float = 0.0


class HttpBackend:
    """Sends requests by a provider's library. A parameter that the endpoint refuses is left out and remembered.

    `memory` holds what was found out of the endpoint. The client hands in one that lasts.
    """

    library: ClassVar[str]  # the package that speaks the provider's protocol
    client: ClassVar[str]  # its class of clients
    path: ClassVar[str]  # where requests go
    models_path: ClassVar[str]

    def __init__(self, config: LLMConfig, *, model: str, base_url: str, api_key: str | None = None) -> None:
        self._config = config
        self._model = model
        self.base_url = base_url
        self._api_key = api_key
        self._extra_body: dict[str, Any] = {}
        self.memory: MutableMapping[str, Any] = {}
        self._wire: Wire | None = None  # of `base_url`
        self._replicas: list[Replica] = []  # that one and the others

    @property
    def model(self) -> str:
        return self._model

    @property
    def _where(self) -> str:
        return public_url(self.base_url)

    async def connect(self) -> Wire:
        """Raises ConfigError where the key or the library is missing."""
        if self._wire is None:
            # the library takes a second to import: others go on meanwhile
            library = await asyncio.to_thread(_library, self.library)
            if self._api_key is None:
                self._api_key = find_key(self._config, self.base_url)
            headers = find_headers(self._config)
            self._extra_body = find_extra_body(self._config)
            secrets = secrets_sent(self._api_key, headers, self._extra_body, self.base_url)

            def wire(url: str) -> Wire:
                hidden = (*secrets, *secrets_sent("", {}, {}, url))
                failures = Failures(url, self._model, self._config.api_key_env, hidden)
                key = self._api_key or ""
                return Wire(library, self.client, self._config, url, key, headers, failures, is_local(url))

            self._wire = wire(self.base_url)
            self._replicas = [Replica(self._wire), *(Replica(wire(url)) for url in self._config.replicas)]
        return self._wire

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.wire.close()
        self._wire, self._replicas = None, []

    async def _send(self, body: dict[str, Any], most_bytes: int) -> dict[str, Any]:
        """POST, again in another shape for each parameter that the endpoint refuses; what helped is remembered."""
        changes: list[str] = []
        while True:
            shaped = self._shaped(body, changes)
            try:
                data = await self._answered(shaped, most_bytes)
            except Refused as error:
                change = _change_for(error, shaped)
                if change is None or change in changes:
                    raise
                changes.append(change)
                continue
            self._learn(changes)
            return data

    async def _answered(self, body: dict[str, Any], most_bytes: int) -> dict[str, Any]:
        """What the endpoint answers to `body`, as it is: of several addresses the one that has the fewest requests, of
        those that did not fail a moment ago."""
        assert self._replicas, "ask after start"
        now = time.monotonic()
        replica = min(self._replicas, key=lambda each: (each.rests_until > now, each.busy))
        replica.busy += 1
        try:
            return await replica.wire.post(self.path, body, most_bytes)
        except RetryableFailure:
            replica.rests_until = now + REST
            raise
        finally:
            replica.busy -= 1

    def _shaped(self, body: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
        without = {*self.memory.get("without", []), *changes}
        shaped = {name: value for name, value in body.items() if name not in without}
        if self.memory.get("max_completion_tokens") or "max_tokens" in changes:
            shaped.pop("max_tokens", None)
            shaped["max_completion_tokens"] = body["max_tokens"]
        return shaped | self._extra_body

    def _learn(self, changes: Sequence[str]) -> None:
        for change in changes:
            without = self.memory.get("without", [])
            if change == "max_tokens":
                if not self.memory.get("max_completion_tokens"):
                    self.memory["max_completion_tokens"] = True
            elif change not in without:
                log.warning("%s does not let %r be set for %s: going on without", self._where, change, self._model)
                self.memory["without"] = [*without, change]


def _change_for(error: Refused, sent: Mapping[str, Any]) -> str | None:
    """The parameter of the request that was sent which the endpoint would rather not see."""
    if "max_tokens" in sent and re.search(r"\bmax_completion_tokens", error.text):
        return "max_tokens"
    return next((name for name in _DROPPABLE if name in sent and error.names(name)), None)


def asked_for(config: LLMConfig) -> dict[str, Any]:
    """What the config adds to each request, where it adds anything; secrets stand as the names of variables."""
    extras = {name: getattr(config, name) for name in ("reasoning_effort", "extra_body", "headers")}
    return {name: value for name, value in extras.items() if value}


def find_key(config: LLMConfig, base_url: str) -> str:
    """The key from the environment; servers of this machine need none. Raises ConfigError, naming the variable."""
    key = os.environ.get(config.api_key_env) if config.api_key_env else "none"
    if not key and not is_local(base_url):
        raise ConfigError(f"{public_url(base_url)} needs a key: set the environment variable {config.api_key_env}")
    return key or "none"


def find_headers(config: LLMConfig) -> dict[str, str]:
    """`llm.headers` with the values of the variables that they name. Raises ConfigError for one that is not set."""
    return {name: _resolved(value, f"llm.headers.{name}") for name, value in config.headers.items()}


def find_extra_body(config: LLMConfig) -> dict[str, Any]:
    """`llm.extra_body`, the same."""
    return {name: _resolved(value, f"llm.extra_body.{name}") for name, value in config.extra_body.items()}


def secrets_sent(key: str, headers: Mapping[str, str], body: Mapping[str, Any], base_url: str) -> tuple[str, ...]:
    """What is sent to an endpoint and may be a secret; from now on hidden wherever text is written."""
    hidden = [key, *not_harmless(headers), *not_harmless(body), *secrets_of(base_url)]
    hide(*hidden)
    return tuple(secret for secret in hidden if len(secret) > 4)


def _resolved(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolved(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(part, where) for part in value]
    if not isinstance(value, str) or not VARIABLE.fullmatch(value):
        return value
    if not os.environ.get(value[1:]):
        raise ConfigError(f"{where} needs the environment variable {value[1:]}")
    return os.environ[value[1:]]


def is_local(url: str) -> bool:
    """Whether the endpoint runs on this machine."""
    return (urlsplit(url).hostname or "") in ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def check_library(name: str, *, extra: str | None = None) -> None:
    """Raise ConfigError where a provider's package is not installed. `extra`: ours that has it; `name` without it."""
    try:
        known = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is part of
        known = False
    if not known:
        raise ConfigError(f"the package {name} is not installed: pip install 'autointerp-sae[{extra or name}]'")


def _library(name: str) -> Any:
    check_library(name)
    return importlib.import_module(name)
