"""Flow matching on latents and semantic features: schedule, draws, noising, losses, sampler.

Pure tensor functions: nothing here knows of ranks, files or the model's inside.
"""
