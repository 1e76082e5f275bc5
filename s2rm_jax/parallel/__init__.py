"""Devices and processes: mesh, shardings, joining and communication."""
