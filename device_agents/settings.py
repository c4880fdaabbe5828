"""Set governor, power mode and clocks of this device, read back what it took, and put it back later."""

import glob
import json
import os
import re
import shutil
import signal
import subprocess

NAMES = ("power_mode", "governor", "clocks")  # in this order: a power mode changes the clocks' bounds
KEPT = "restore.json"
STORED = "jetson_clocks.conf"  # what jetson_clocks --store wrote
POLICIES = "/sys/devices/system/cpu/cpufreq/policy*"
MODES = "/etc/nvpmodel.conf"
TOOL_S = 30.0
PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SUDO = "as root it could be: set `sudo: true` for this device (sudo without a password), or log in as root"


class Refused(Exception):
    """A sentence: why something could not be read or set."""


def read(names=None, root="/"):
    """What holds now: name -> {requested, observed, before: None, reason}; *names* may be {name: asked}."""
    wanted = names if isinstance(names, dict) else dict.fromkeys(names or NAMES)
    return {name: _row(value, root, name) for name, value in wanted.items() if name != "sudo"}


def apply(wanted, sudo=False, folder=".", root="/"):
    """
    Set *wanted* {name: value}; name -> {requested, observed, before, reason}.

    What was there before is in restore.json of *folder* before anything is changed; the first ``before``
    stays there through later calls. With *sudo*, what is not permitted is tried with ``sudo -n``.
    """
    wanted = {name: value for name, value in wanted.items() if name != "sudo"}
    kept = _load(folder)
    rows, ready = {}, []
    for name in sorted(wanted, key=lambda n: NAMES.index(n) if n in NAMES else -1):
        rows[name] = row = _row(wanted[name], root, name)
        row["before"] = kept["before"][name]["shown"] if name in kept["before"] else row["observed"]
        if row["observed"] is not None and (row["observed"] != wanted[name] or _more_than_shown(name, kept)):
            ready.append(name)
    if ready:
        kept["before"].update({name: _before(name, root) for name in ready if name not in kept["before"]})
        kept["sudo"] = bool(sudo)
        _save(folder, kept)
    for name in ready:
        reason = None
        try:
            _set(name, wanted[name], sudo, folder, root)
        except Refused as error:
            reason = str(error)
        now = _row(wanted[name], root, name)
        same = now["observed"] == wanted[name]
        reason = None if same else reason or now["reason"] or "it was set, but it does not read so"
        rows[name].update(observed=now["observed"], reason=reason)
    return {name: rows[name] for name in wanted}


def restore(folder=".", root="/"):
    """
    Put back what restore.json of *folder* holds; name -> {requested, observed, before, reason}.

    ``requested`` is the value from before. What cannot be put back stays in the file, with its reason in
    the answer; the file goes when nothing is left. Without a file nothing is done.
    """
    kept = _load(folder)
    order = [name for name in reversed(NAMES) if name in kept["before"]]
    reasons, rows = {}, {name: _row(kept["before"][name]["shown"], root, name) for name in order}
    # Clocks under a power mode may be out of the bounds of the one before, so they are written again.
    again = [name for name in order if name != "power_mode"] if "power_mode" in order else []
    for name in order + again:
        try:
            _put_back(name, kept["before"][name], kept.get("sudo", False), folder, root)
            reasons.pop(name, None)
        except Refused as error:
            reasons[name] = str(error)
    for name in order:
        saved, now = kept["before"][name], _row(None, root, name)
        back = now["observed"] is not None and _is_back(name, saved, root)
        reason = None if back else reasons.get(name) or now["reason"] or "it was set, but it does not read so"
        rows[name].update(before=rows[name]["observed"], observed=now["observed"], reason=reason)
        if back:
            del kept["before"][name]
    if kept["before"]:
        _save(folder, kept)
    else:
        for name in (STORED, KEPT):
            if os.path.exists(os.path.join(folder, name)):
                os.unlink(os.path.join(folder, name))
    return rows


def _row(requested, root, name):
    row = {"requested": requested, "observed": None, "before": None, "reason": None}
    try:
        row["observed"] = _observe(name, requested, root)
    except Refused as error:
        row["reason"] = str(error)
    return row


def _more_than_shown(name, kept):
    """jetson_clocks pins GPU and memory too, which the clocks of the CPU do not tell."""
    return name == "clocks" and name not in kept["before"] and _which("jetson_clocks") is not None


def _observe(name, requested, root):
    """The value of a setting now, in the words in which it is asked for; Refused if it cannot be known."""
    if name == "governor":
        return _joined({p: _text(root, p, "scaling_governor") for p in _policies(root)})
    if name == "clocks":
        limits = {p: _limits(root, p) for p in _policies(root)}
        if all(low == high for low, high in limits.values()):
            return "max"
        return _joined({p: "{}-{} kHz".format(*both) for p, both in limits.items()})
    if name == "power_mode":
        mode, number = _power_mode()
        return number if isinstance(requested, int) else mode
    raise Refused("{} is no setting; known are {}".format(name, ", ".join(NAMES)))


def _joined(values):
    """One word if all policies agree, else each by its name."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join("{}: {}".format(os.path.basename(p), v) for p, v in sorted(values.items()))


def _before(name, root):
    """All that is needed to put a setting back; ``shown`` is how it reads."""
    saved = {"shown": _observe(name, None, root)}
    if name == "governor":
        saved["policies"] = {os.path.basename(p): _text(root, p, "scaling_governor") for p in _policies(root)}
    elif name == "clocks":
        saved["policies"] = {os.path.basename(p): _limits(root, p)[0] for p in _policies(root)}
    else:
        saved["id"] = _power_mode()[1]
    return saved


def _set(name, value, sudo, folder, root):
    """Change one setting; Refused with what hinders."""
    if name == "governor":
        for policy in _policies(root):
            known = _words(root, policy, "scaling_available_governors")
            if known and value not in known:
                where = os.path.basename(policy)
                raise Refused("{} has no governor {}; it has {}".format(where, value, ", ".join(known)))
        for policy in _policies(root):
            _write(root, policy + "/scaling_governor", value, sudo)
    elif name == "power_mode":
        _set_power_mode(value, sudo, root)
    elif value != "max":
        raise Refused("clocks can be set to max only, not to {}".format(value))
    elif _which("jetson_clocks"):
        stored = os.path.abspath(os.path.join(folder, STORED))
        if not os.path.exists(stored):  # it asks before it overwrites a file
            _tool(["jetson_clocks", "--store", stored], sudo)
        if not os.path.exists(stored):
            raise Refused("jetson_clocks --store wrote no file, so the clocks stay as they are")
        _tool(["jetson_clocks"], sudo)
    else:
        for policy in _policies(root):
            _write(root, policy + "/scaling_min_freq", _limits(root, policy)[1], sudo)


def _put_back(name, saved, sudo, folder, root):
    if name == "power_mode":
        if _power_mode()[0] != saved["shown"]:
            _set_power_mode(saved["shown"], sudo, root)
        return
    stored = os.path.abspath(os.path.join(folder, STORED))
    if name == "clocks" and os.path.exists(stored):
        _tool(["jetson_clocks", "--restore", stored], sudo)
    for path, value in _differing(name, saved, root):
        _write(root, path, value, sudo)


def _is_back(name, saved, root):
    return _power_mode()[0] == saved["shown"] if name == "power_mode" else not _differing(name, saved, root)


def _differing(name, saved, root):
    """(path, value from before) of files that read otherwise; cores that are off have no policy."""
    file = "scaling_governor" if name == "governor" else "scaling_min_freq"
    here = [policy for policy in _policies(root) if os.path.basename(policy) in saved["policies"]]
    pairs = [(policy, saved["policies"][os.path.basename(policy)]) for policy in here]
    return [(p + "/" + file, value) for p, value in pairs if _text(root, p, file) != value]


# cpufreq


def _policies(root):
    """Folders of cpufreq policies, without *root*."""
    found = [path[len(root.rstrip("/")) :] for path in sorted(glob.glob(root.rstrip("/") + POLICIES))]
    if not found:
        raise Refused("this system has no cpufreq")
    return found


def _text(root, policy, file):
    path = "{}/{}".format(policy, file)
    try:
        with open(root.rstrip("/") + path, encoding="utf-8", errors="replace") as opened:
            return opened.read(4096).strip()
    except OSError as error:
        raise Refused("{} cannot be read: {}".format(path, error.strerror)) from error


def _words(root, policy, file):
    try:
        return _text(root, policy, file).split()
    except Refused:  # some drivers do not list their governors; the kernel then judges
        return []


def _limits(root, policy):
    """(smallest, largest) clock that a policy may use, as text, kHz."""
    return _text(root, policy, "scaling_min_freq"), _text(root, policy, "scaling_max_freq")


def _write(root, path, value, sudo):
    full = root.rstrip("/") + path
    try:
        with open(full, "w", encoding="utf-8") as file:
            file.write(value)
    except PermissionError as error:
        if not sudo:
            raise Refused("{} may not be written by this user; {}".format(path, SUDO)) from error
        _tool(["tee", full], True, value)
    except OSError as error:
        raise Refused("the kernel refused {} for {}: {}".format(value, path, error.strerror)) from error


# Jetson


def _power_mode():
    """(name, id) of the power mode: ids differ between modules, names do not."""
    text = _tool(["nvpmodel", "-q"], False, root_only=False)
    found = re.search(r"NV Power Mode: *(\S.*?)\s*(?:\n\s*(\d+)\s*)?$", text, re.M)
    if not found:
        raise Refused("nvpmodel -q says {!r}".format(text[:80]))
    number = re.search(r"^\s*(\d+)\s*$", text, re.M)
    return found.group(1), int(number.group(1)) if number else None


def _set_power_mode(value, sudo, root):
    number = value
    if not isinstance(value, int):
        try:
            with open(root.rstrip("/") + MODES, encoding="utf-8", errors="replace") as file:
                modes = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", file.read())
        except OSError as error:
            raise Refused("{} cannot be read: {}".format(MODES, error.strerror)) from error
        ids = {name: int(i) for i, name in modes}
        if value not in ids:
            raise Refused("{} has no power mode {}; it has {}".format(MODES, value, ", ".join(ids)))
        number = ids[value]
    said = _tool(["nvpmodel", "-m", str(number)], sudo, "NO\n")  # NO: it may ask whether to reboot
    name, now = _power_mode()
    if value not in (name, now):
        why = (
            "it needs a reboot" if "eboot" in said else "nvpmodel said: " + (said.strip()[-160:] or "nothing")
        )
        hint = "set it once by hand (sudo nvpmodel -m {}) and answer YES".format(number)
        raise Refused("the power mode is still {}: {}; {}".format(name, why, hint))


# Programs


def _which(name):
    return shutil.which(name, path=(os.environ.get("PATH", "") + ":" + PLACES).lstrip(":"))


def _tool(argv, sudo, given="", root_only=True):
    """Run a program, with ``sudo -n`` if that is wanted and needed; what it printed. Refused if it fails."""
    path = _which(argv[0])
    if path is None:
        raise Refused("there is no {}".format(argv[0]))
    full = [path, *argv[1:]]
    as_root = os.geteuid() == 0
    if sudo and root_only and not as_root:
        if _which("sudo") is None:
            raise Refused("{} needs root and there is no sudo".format(argv[0]))
        full = [_which("sudo"), "-n", *full]
    env = dict(os.environ, LC_ALL="C", PATH=(os.environ.get("PATH", "") + ":" + PLACES).lstrip(":"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    child = subprocess.Popen(full, env=env, start_new_session=True, **pipes)
    try:
        text = child.communicate(given.encode("utf-8"), timeout=TOOL_S)[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired as error:
        os.killpg(child.pid, signal.SIGKILL)
        raise Refused("{} did not end within {:g} s".format(" ".join(argv), TOOL_S)) from error
    if child.returncode:
        said = " ".join(text.split())[-160:] or "nothing"
        hint = "" if as_root or sudo or not root_only else "; " + SUDO
        end = "{} ended with exit code {}".format(" ".join(argv), child.returncode)
        raise Refused("{} and said: {}{}".format(end, said, hint))
    return text


# restore.json


def _load(folder):
    try:
        with open(os.path.join(folder, KEPT), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {"before": {}}


def _save(folder, kept):
    """Written beside, synced, renamed: after a crash there is the old file or the new one."""
    path = os.path.join(folder, KEPT)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(kept, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
