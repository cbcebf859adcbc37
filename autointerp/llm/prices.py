"""Prices of tokens: those of the config, else those that the package `genai-prices` lists."""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.config import LLMConfig
from autointerp.errors import ConfigError

NOT_IN_KEYS = "it says what a request costs"

_PROMPT = 1000  # tokens of the prompt that is priced: some models cost more from 128,000 tokens on


@dataclass(frozen=True, slots=True)
class Prices:
    """Of a million tokens, in US dollars or in whatever unit the config's prices have."""

    tokens_in: float
    tokens_out: float

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.tokens_in + completion_tokens * self.tokens_out) / 1e6


FREE = Prices(0.0, 0.0)  # models that run here


def with_given(config: LLMConfig, prices: Prices | None) -> Prices | None:
    """`prices` where the config names none: `llm.price_in` and `llm.price_out` go before them."""
    tokens_in = config.price_in if config.price_in is not None else prices and prices.tokens_in
    tokens_out = config.price_out if config.price_out is not None else prices and prices.tokens_out
    return None if tokens_in is None or tokens_out is None else Prices(tokens_in, tokens_out)


def check_limits(config: LLMConfig, prices: Prices | None) -> None:
    """Raise ConfigError for a limit of cost where the prices are not known."""
    if config.max_cost is not None and prices is None:
        raise ConfigError(
            f"llm.max_cost: the prices of {config.model!r} are not known, set llm.price_in and llm.price_out "
            "(per million tokens)"
        )


def listed_prices(model: str, base_url: str | None, provider: str | None = None) -> Prices | None:
    """Those of the model at a provider, known by its address or its name, without any request; None where they are not
    listed."""
    from genai_prices import Usage, calc_price

    def price(usage: Usage) -> float:
        if provider is not None:
            return float(calc_price(usage, model, provider_id=provider).total_price) * 1e6 / _PROMPT
        return float(calc_price(usage, model, provider_api_url=base_url).total_price) * 1e6 / _PROMPT

    try:
        return Prices(
            price(Usage(input_tokens=_PROMPT, output_tokens=0)), price(Usage(input_tokens=0, output_tokens=_PROMPT))
        )
    except (LookupError, ValueError):  # neither the provider nor the model is listed
        return None
