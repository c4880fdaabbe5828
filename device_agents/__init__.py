"""What is pushed to a device; the files here import nothing of edgebench."""
