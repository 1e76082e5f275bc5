"""Devices and hosts: the only part of the package that knows how many there are."""
