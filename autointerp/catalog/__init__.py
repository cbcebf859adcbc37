"""The catalogue of models and text by name: fetched once, hash checked, kept in the user's cache."""

from autointerp.catalog.entries import Entry, Kind
from autointerp.catalog.sample import sampled_text
from autointerp.catalog.store import cached_folder, check_name, entries, is_cached, models_table, resolve

__all__ = [
    "Entry",
    "Kind",
    "cached_folder",
    "check_name",
    "entries",
    "is_cached",
    "models_table",
    "resolve",
    "sampled_text",
]
