"""How a decoder's weights, activations and cache are split over a grid of chips when it is served: a layout for each phase."""
