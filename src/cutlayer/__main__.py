"""``python -m cutlayer``: the same as the ``cutlayer`` command."""

from cutlayer.cli.app import main

main()
