"""Pure tensors: VAEs, diffusion transformers, diffusion objectives and text encoders."""
