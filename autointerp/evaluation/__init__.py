"""Evaluation of an SAE: reconstruction, behaviour of the patched model, latents, interference."""

from __future__ import annotations

from autointerp.evaluation.figures import FIGURES as FIGURES
from autointerp.evaluation.figures import by_band as by_band
from autointerp.evaluation.figures import by_position as by_position
from autointerp.evaluation.figures import overall as overall
from autointerp.evaluation.interference import interference_figures as interference_figures
from autointerp.evaluation.latents import latent_figures as latent_figures
from autointerp.evaluation.latents import latent_table as latent_table
from autointerp.evaluation.latents import token_classes as token_classes
from autointerp.evaluation.rows import Row as Row
from autointerp.evaluation.rows import rows_of as rows_of
from autointerp.evaluation.saebench import saebench as saebench
from autointerp.evaluation.sums import Measured as Measured
from autointerp.evaluation.sums import PatchedModel as PatchedModel
from autointerp.evaluation.sums import measure as measure
