"""`python -m imray.cli`: the command line where the script `imray` is not on the path."""

from imray.cli import main

main()
