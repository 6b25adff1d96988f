"""`python -m bnexp`, which is how torchrun starts it."""

from bnexp.cli.main import main

main()
