"""Renderings of a run, one file each."""
