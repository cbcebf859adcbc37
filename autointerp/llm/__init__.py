"""Language models that explain and judge: one client over three backends, with cache, retries, limits and usage."""

from autointerp.llm.build import open_llm
from autointerp.llm.client import Client, Meter, UsageRow, read_usage, tag

__all__ = ["Client", "Meter", "UsageRow", "open_llm", "read_usage", "tag"]
