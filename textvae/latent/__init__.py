"""Latents: posteriors, priors and the divergences between them; never text."""
