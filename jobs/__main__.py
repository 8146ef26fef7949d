"""`python -m jobs` is `lakelens`."""

from jobs.cli import main

main()
