"""Which inputs and which units a model needs."""
