"""Controls, one file each: which other explanation a score is repeated with, as a baseline."""
