"""Composite features: latents whose decoder direction is a positive sum of two to four others."""

from __future__ import annotations

from autointerp.composites.check import find_composites as find_composites
from autointerp.composites.labels import FLAGGED as FLAGGED
from autointerp.composites.labels import Label as Label
from autointerp.composites.labels import expand as expand
from autointerp.composites.neighbours import top_neighbours as top_neighbours
