"""``python -m autointerp`` is ``autointerp``."""

from autointerp.cli import main

main()
