"""The network as pure Linen modules: arrays in, arrays out."""
