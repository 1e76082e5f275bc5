"""Serve a trained network as a web page and over HTTP (the extra `demo`)."""
