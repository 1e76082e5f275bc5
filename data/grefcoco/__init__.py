"""gRefCOCO for TFDS."""
