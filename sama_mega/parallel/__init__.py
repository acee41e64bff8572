"""Degrees to process groups, and the only door to megatron-core's runtime.

Nothing is imported here: `sama-mega check` reads `layout` alone and must not pay for torch.
"""

import warnings

# megatron-core's remarks about itself; a user can act on none of them. It looks for apex and Transformer
# Engine on import (the optimizer here is torch's fused AdamW on purpose), warns about the default of a field
# of its own configuration, and calls collectives by names that torch 2.13 calls old.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed", category=UserWarning)
warnings.filterwarnings("ignore", message="full scope is deprecated", category=UserWarning)
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
