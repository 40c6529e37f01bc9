"""Networks: encoders, decoders, output layers and how they start."""
