"""Generation: search over words and paths through the latent space."""
