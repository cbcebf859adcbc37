"""A Ray cluster as the executor: a driver, workers, and one keeper of what they share; needs the package ray."""
