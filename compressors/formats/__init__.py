"""Export formats, one file each: ``export()``, ``outputs()`` in the format's own runtime, ``signature()``."""
