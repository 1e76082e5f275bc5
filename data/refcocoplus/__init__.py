"""RefCOCO+ for TFDS."""
