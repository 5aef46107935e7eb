"""`python -m experiments.results`: the table of all figures and tables of the papers, from the JSON in `results/`."""
