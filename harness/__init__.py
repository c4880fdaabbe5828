"""The host side of edgebench: runs measurements and keeps the results."""

__version__ = "0.1.0"
