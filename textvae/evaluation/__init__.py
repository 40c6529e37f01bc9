"""Evaluation: bounds, latents, text and the report that joins them."""
