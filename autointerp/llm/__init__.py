"""Language models that explain and judge: one client over several backends; cache, retries, limits, prices, usage."""

from autointerp.llm.build import open_llm
from autointerp.llm.client import Client
from autointerp.llm.usage import Meter, UsageRow, read_usage, tag

__all__ = ["Client", "Meter", "UsageRow", "open_llm", "read_usage", "tag"]
