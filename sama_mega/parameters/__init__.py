"""Names and shapes of the model's whole parameters. Imports no torch: planning and converting need no model."""
