"""Irregular series with missing values: data, and the training of latent ODEs and recurrent networks on them."""
