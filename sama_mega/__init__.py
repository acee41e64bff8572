"""sama-mega: training SAMA, an instruction-guided video editing model, on megatron-core."""

__version__ = "0.1.0"
