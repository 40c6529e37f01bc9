"""Text: corpora, tokenizers, batches; tokens only, never latents."""
