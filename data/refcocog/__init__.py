"""RefCOCOg for TFDS."""
