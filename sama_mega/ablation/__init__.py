"""The ablation study: what semantic anchoring, motion alignment and type embeddings change on the synthetic world."""
