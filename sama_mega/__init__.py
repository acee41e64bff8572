"""sama-mega: training SAMA, an instruction-guided video editing model, on megatron-core."""

import warnings

__version__ = "0.1.0"

# megatron-core's remarks about itself; a user can act on none of them. It looks for apex and Transformer
# Engine on import (the optimizer here is torch's fused AdamW on purpose), warns about the default of a field
# of its own configuration, and calls collectives by names that torch 2.13 calls old. Here and not in a package that
# uses it: several do, and whichever is imported first brings it in.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed", category=UserWarning)
warnings.filterwarnings("ignore", message="full scope is deprecated", category=UserWarning)
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
