"""The viewer: a run of any size in a browser, served on this machine alone."""
