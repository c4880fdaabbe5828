"""Ways to read power on the host, one file each."""
