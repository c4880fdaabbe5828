"""Devices over ssh, against real OpenSSH servers on loopback."""
