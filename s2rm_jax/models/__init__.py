"""The network as pure Linen modules: arrays in, arrays out, nothing else of this package imported."""
