"""ContinuousNet (Queiruga et al. 2021): one script a claim; its Figs 7 to 9 are `experiments.figures`."""
