"""Whether each part of the network earns its place: variants, trained alike and compared."""
