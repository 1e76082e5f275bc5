"""ReferIt for TFDS."""
