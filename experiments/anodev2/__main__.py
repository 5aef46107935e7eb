"""`python -m experiments.anodev2` is `experiments.anodev2.tables`."""

from experiments.anodev2.tables import main

main()
