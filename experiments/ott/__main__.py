"""`python -m experiments.ott` is `experiments.ott.critical_steps`."""

from experiments.ott.critical_steps import main

main()
