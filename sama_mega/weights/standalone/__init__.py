"""Files that travel with an export and run without this package: torch, diffusers and transformers are all they use."""
