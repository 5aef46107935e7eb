"""The adaptive checkpoint adjoint (Zhuang et al. 2020): one script a claim."""
