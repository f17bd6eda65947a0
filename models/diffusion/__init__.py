"""Diffusion objectives and samplers: pure functions of tensors."""
