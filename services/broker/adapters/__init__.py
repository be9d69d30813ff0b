"""Venues, one file each."""
