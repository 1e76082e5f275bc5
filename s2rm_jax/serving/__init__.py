"""A trained network as a page and an HTTP interface (the extra `demo`)."""
