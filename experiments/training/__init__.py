"""What trains a network: settings, the network they mean, one step, and the folder of a run."""
