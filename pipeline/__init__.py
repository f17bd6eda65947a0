"""Data steps on files: from raw videos to a cache of latents and text, and from the cache to training batches."""
