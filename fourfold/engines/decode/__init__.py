"""Ways to generate: one file a way, each a `Decoding` (see `base`) that answers equal to `eager` within its stated tolerance."""
