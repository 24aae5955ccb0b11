"""``python -m xbarc``."""

from xbarc.cli import main

main()
