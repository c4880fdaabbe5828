"""The verbs of the command line, one file each: ``command`` is a click command."""
