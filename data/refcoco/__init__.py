"""RefCOCO for TFDS."""
