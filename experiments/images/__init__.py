"""Image sets: where they come from, and what a training loop reads."""
