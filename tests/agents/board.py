"""A board that is not here: a tree of files and programs that behave as on a device, for an ordinary user."""

from __future__ import annotations

import ctypes
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

NOBODY = 65534
PR_SET_DUMPABLE = 4
C_LIBRARY = ctypes.CDLL(None)
TOOLS = {
    "nvpmodel": """
case "$1" in
-q) read name id < "$FAKE/mode"; printf 'NV Power Mode: %s\\n%s\\n' "$name" "$id";;
-m) [ "$FAKE_ROOT" ] || { echo "NVPM ERROR: Permission denied"; exit 1; }
    if [ -e "$FAKE/needs_reboot" ]; then
      echo "NVPM WARN: Reboot required for changing to this power mode: $2"; read answer; exit 0
    fi
    echo "$(sed -n "s/.*ID=$2 NAME=\\([^ ]*\\) .*/\\1/p" "$FAKE/etc/nvpmodel.conf") $2" > "$FAKE/mode";;
esac
""",
    "jetson_clocks": """
[ "$FAKE_ROOT" ] || { echo "Error: please run as root"; exit 1; }
for policy in "$FAKE"/sys/devices/system/cpu/cpufreq/policy*; do
  low="$policy/scaling_min_freq"
  case "$1" in
  --store) [ -e "$2.taken" ] && exit 1; echo "$low $(cat "$low")" >> "$2";;
  --restore) grep -F "$low " "$2" | { read path value; chmod u+w "$path"; echo "$value" > "$path"; };;
  *) chmod u+w "$low"; cat "$policy/scaling_max_freq" > "$low";;
  esac
done
echo "$*" >> "$FAKE/jetson_clocks.log"
""",
    "sudo": """
shift
[ -e "$FAKE/sudo_asks" ] && { echo "sudo: a password is required" >&2; exit 1; }
case "$1" in
*/tee) [ -e "$FAKE/swallows" ] && exit 0; chmod u+w "$2"; cat > "$2"; chmod u-w "$2";;
*) FAKE_ROOT=1 exec "$@";;
esac
""",
}
MODES = "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=10W >\n"


class Board:
    """A device's files below one folder, and what settings.py does there as an ordinary user."""

    def __init__(self, root: Path, module: ModuleType) -> None:
        self.root, self.module = root, module
        self.folder = root / "work"
        self.folder.mkdir()
        self.path = str(root / "bin")
        for number, (low, high) in enumerate([(300000, 1500000), (500000, 2400000)]):
            self.policy(number, scaling_min_freq=low, scaling_max_freq=high)

    def policy(self, number: int, **files: object) -> Path:
        folder = self.root / f"sys/devices/system/cpu/cpufreq/policy{number}"
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"scaling_governor": "ondemand", "scaling_available_governors": "ondemand performance "}
        for name, text in (texts | files).items():
            (folder / name).write_text(f"{text}\n")
        return folder

    def tools(self, *names: str) -> None:
        for name in names:
            target = self.root / "bin" / name
            target.parent.mkdir(exist_ok=True)
            target.write_text("#!/bin/sh" + TOOLS[name])
            target.chmod(0o755)
        (self.root / "etc").mkdir(exist_ok=True)
        (self.root / "etc/nvpmodel.conf").write_text(MODES)
        (self.root / "mode").write_text("MAXN 0\n")

    def lock(self) -> None:
        """Nothing below /sys may be written by this user."""
        for path in (self.root / "sys").rglob("scaling_*_freq"):
            path.chmod(0o444)
        for path in (self.root / "sys").rglob("scaling_governor"):
            path.chmod(0o444)

    def values(self, file: str) -> list[str]:
        return [path.read_text().strip() for path in sorted((self.root / "sys").rglob(file))]

    @property
    def kept(self) -> dict[str, Any]:
        path = self.folder / "restore.json"
        return dict(json.loads(path.read_text())["before"]) if path.exists() else {}

    def apply(self, sudo: bool = False, **wanted: object) -> dict[str, Any]:
        return self._call(lambda: self.module.apply(wanted, sudo, str(self.folder), str(self.root)))

    def restore(self) -> dict[str, Any]:
        return self._call(lambda: self.module.restore(str(self.folder), str(self.root)))

    def read(self) -> dict[str, Any]:
        return self._call(lambda: self.module.read(None, str(self.root)))

    def _call(self, function: Callable[[], Any]) -> dict[str, Any]:
        """In a child that is no root, whoever runs the tests."""
        ours = [self.root, *self.root.rglob("*")]
        if os.geteuid() == 0:
            for path in ours:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                    C_LIBRARY.prctl(PR_SET_DUMPABLE, 1)  # else its own files in /proc are root's
                os.environ.update(PATH=f"{self.path}:/usr/bin:/bin", FAKE=str(self.root))
                os.environ.pop("FAKE_ROOT", None)
                os.write(sink, json.dumps(function()).encode())
            except Exception:  # noqa: BLE001 - shown, and the missing answer fails the test
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(sink)
        with os.fdopen(source, "rb") as answer:
            text = answer.read()
        os.waitpid(child, 0)
        return dict(json.loads(text))
