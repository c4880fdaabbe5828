"""The fingerprint program that is pushed to a device: the modules of device_agents it needs, in one file."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

import device_agents
from harness.core.places import cache_dir

FOLDER = Path(device_agents.__file__).parent
PROBE = FOLDER / "probe.py"
#: Name in the archive -> file. Python runs an archive by its __main__ and imports the others from it.
MODULES = {"__main__.py": PROBE, "readings.py": FOLDER / "readings.py"}
#: The same content gives the same archive, whenever it is made.
EPOCH = (1980, 1, 1, 0, 0, 0)


def program() -> Path:
    """The archive, made in the cache unless it is there; its name holds the hash of what is in it."""
    content = {name: path.read_bytes() for name, path in MODULES.items()}
    key = hashlib.sha256(b"".join(name.encode() + b"\0" + text for name, text in content.items())).hexdigest()
    target = cache_dir() / "probe" / f"probe-{key[:16]}.pyz"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=target.parent, prefix=".probe-")
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name, text in content.items():
                archive.writestr(zipfile.ZipInfo(name, EPOCH), text)  # stored: the device may lack zlib
        Path(beside).replace(target)
    return target
