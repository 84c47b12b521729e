"""`python -m tunesmith`: the command line, where the program itself is not on the path."""

from tunesmith.cli import main

main()
