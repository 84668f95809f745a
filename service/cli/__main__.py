"""``python -m roadless.service.cli``."""

from roadless.service.cli.main import main

main()
