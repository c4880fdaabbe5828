"""Files on a device: pushed, resumed after a cut, verified, durable before they get their name."""

import hashlib
import os
import re
import stat
import threading
import zlib
from contextlib import suppress
from errno import EBUSY, EDQUOT, EEXIST, ENOSPC, ENOTEMPTY

from keeper import Refused

BLOCK = 1 << 18
THREADS = 16  # that wait for the disk at once: then they share its commits
MARKER = ".edgebench-folder"  # says that a folder was made by us, or was empty when we came
OURS = ("files", "parts", "jobs", "links")  # folders that nothing may be unpacked over
STATE = ("lease.json", "janitor.json", "restore.json", "jetson_clocks.conf", "lock", MARKER)
SITE = "site"  # the folder that things are unpacked into
#: What local.py and an interrupted write leave behind.
REMAINS = re.compile(r"(lease|janitor|restore)\.json\.(new|[0-9]+)|\.push-[A-Za-z0-9_]+")
ALWAYS_THERE = "lost+found"  # in a file system of its own; nobody's
PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class Part:
    """A file on its way: written beside, hashed as it comes."""

    def __init__(self, path, target, wanted, offset):
        self.path, self.target, self.wanted = path, target, wanted
        new = os.O_CREAT | os.O_TRUNC if offset == 0 else 0
        self.file = os.open(path, os.O_RDWR | new, 0o600)
        self.hash, self.size = hashlib.sha256(), 0
        while offset:  # what an earlier connection brought
            block = os.read(self.file, BLOCK)
            if not block:
                break
            self.hash.update(block)
            self.size += len(block)

    def add(self, block):
        """Append it."""
        self.hash.update(block)
        self.size += len(block)
        while block:
            block = block[os.write(self.file, block) :]

    def drop(self):
        """Forget it, file and all."""
        os.close(self.file)
        with suppress(FileNotFoundError):
            os.unlink(self.path)


class Files:
    """What lies in the workdir."""

    def __init__(self, workdir):
        self.workdir = os.path.realpath(workdir)
        make_ours(self.workdir)
        for name in OURS:
            os.makedirs(os.path.join(self.workdir, name), mode=0o700, exist_ok=True)
        self.parts, self.whole, self.known = {}, [], {}

    def place(self, folder, name):
        """The path of *name* below a folder of ours; Refused when it would be elsewhere."""
        words = name.split("/") if isinstance(name, str) else [""]
        if any(word in ("", ".", "..") for word in words) or "\0" in name or len(name) > 1000:
            raise Refused("bad_request", "{!r} is no plain name of a file below the workdir.".format(name))
        root = os.path.join(self.workdir, folder) if folder else self.workdir
        path = os.path.join(root, name)
        if "/" in name or "/" in folder:
            inside = (os.path.realpath(os.path.dirname(path)) + "/").startswith(root + "/")
        else:  # the same for one folder below the workdir, which is a real path; many files come this way
            inside = not os.path.islink(root)
        if not inside:
            raise Refused("bad_request", "{!r} leaves the workdir by a link.".format(name))
        return path

    def have(self, files):
        """Which of them are missing or other than wanted, and how much of each came already."""
        missing = {}
        for name, (sha256, size) in files.items():
            if self.content(self.place("files", name), size) == sha256:
                continue
            self.forget(name, sha256)
            try:
                there = os.stat(self.part_path(name, sha256)).st_size
            except FileNotFoundError:
                there = 0
            missing[name] = there if there <= size else 0
        return {"missing": missing}

    def content(self, path, size):
        """The hash of a file of that size, remembered while it is unchanged; None when there is none."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return None
        key = (path, found.st_ino, found.st_size, found.st_mtime_ns)
        if key not in self.known:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                for block in iter(lambda: file.read(BLOCK), b""):
                    digest.update(block)
            self.known[key] = digest.hexdigest()
        return self.known[key]

    def part_path(self, name, sha256):
        """Where a file is while it is on its way: known by its content and its name."""
        return self.place("parts", "{}-{:08x}".format(plain(sha256), zlib.crc32(name.encode("utf-8"))))

    def forget(self, name, sha256):
        """Close a part, keep its file."""
        part = self.parts.pop((name, sha256), None)
        if part is not None:
            os.close(part.file)

    def push(self, name, sha256, size, offset, body):
        """Append to a file that is on its way; when it is whole and right it gets its name."""
        target = self.place("files", name)
        part = self.parts.get((name, sha256)) if offset else self.forget(name, sha256)
        if part is None:
            if not os.path.isdir(os.path.dirname(target)):
                os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            part = Part(self.part_path(name, sha256), target, sha256, offset)
            self.parts[name, sha256] = part
        if offset != part.size:
            raise Refused("bad_request", "{} has {} bytes here, not {}.".format(name, part.size, offset))
        try:
            for block in body.blocks():
                part.add(block)
        except OSError as error:
            del self.parts[name, sha256]
            if error.errno in (ENOSPC, EDQUOT):
                part.drop()
            else:
                os.close(part.file)
            raise
        if part.size < size:
            return {"complete": False}
        del self.parts[name, sha256]
        if part.size > size or part.hash.hexdigest() != sha256:
            part.drop()
            raise Refused("corrupt", "{} came other than it was sent.".format(name))
        facts = {"complete": True}
        self.whole.append((facts, part))
        return facts

    def pull(self, name, offset, limit):
        """A piece of a file."""
        with open(self.place("files", name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(offset)
            return {"size": size}, file.read(limit)

    def unpack(self, name, into, skip=()):
        """Put what is in a zip file (a wheel) below *into*; what is there already is replaced."""
        import zipfile  # here, as it takes time to load: a connection that only pushes does without

        try:
            return self.unpacked(zipfile, name, into, skip)
        except zipfile.BadZipFile as error:
            raise Refused("bad_request", "{} cannot be unpacked: {}.".format(name, error)) from error

    def unpacked(self, zipfile, name, into, skip):
        """The work of unpack."""
        import fnmatch
        import shutil

        folder, count, size = self.site_place(into), 0, 0
        with zipfile.ZipFile(self.place("files", name)) as archive:
            for entry in archive.infolist():
                if entry.is_dir() or any(fnmatch.fnmatch(entry.filename, pattern) for pattern in skip):
                    continue
                path = self.place(into, entry.filename)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with suppress(FileNotFoundError):  # never through a link, never into a file in use
                    os.unlink(path)
                mode = 0o755 if entry.external_attr >> 16 & 0o111 else 0o644
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with os.fdopen(os.open(path, flags, mode), "wb") as file, archive.open(entry) as source:
                    shutil.copyfileobj(source, file, BLOCK)
                count, size = count + 1, size + entry.file_size
        return {"files": count, "bytes": size, "path": folder}

    def site_place(self, name):
        """The path of a folder that things are unpacked into: it is known what of the workdir is ours."""
        path = self.place("", name)
        if name.split("/")[0] != SITE:
            raise Refused("bad_request", "{!r} is not in {}, where unpacked folders are.".format(name, SITE))
        return path

    def remove_all(self):
        """Remove what is ours, then the folder if nothing else is in it: (bytes, names that stay)."""
        names = sorted(filter(is_ours, os.listdir(self.workdir)), key=MARKER.__eq__)  # the marker last
        size = sum(removed(os.path.join(self.workdir, name)) for name in names)
        stay = sorted(set(os.listdir(self.workdir)) - {ALWAYS_THERE})
        try:
            os.rmdir(self.workdir)
        except PermissionError:  # of the folder around it: an empty one that is not ours to remove
            pass
        except OSError as error:
            if error.errno not in (ENOTEMPTY, EEXIST, EBUSY):  # busy: a disk is mounted there
                raise
        return size, stay

    def remove(self, names):
        """Remove what push and unpack made, by the names they were given; how many bytes that was."""
        first = {name.split("/")[0] for name in names if isinstance(name, str)}
        if first & {*OURS, *STATE}:
            raise Refused(
                "bad_request", "{} are names that the supervisor uses itself.".format(sorted(first))
            )
        paths = [self.place("files", name) for name in names]
        paths += [self.site_place(name) for name in names if name.split("/")[0] == SITE]
        return {"removed_bytes": sum(map(removed, paths))}

    def settle(self):
        """Make whole files durable and give them their names; (facts of the answer, error) of failures."""
        whole, self.whole = self.whole, []
        if not whole:
            return []
        errors = at_once(landed, [part for _, part in whole])
        for folder in {os.path.dirname(part.target) for _, part in whole}:
            sync_folder(folder)
        return [(facts, error) for (facts, _), error in zip(whole, errors) if error is not None]


def is_ours(name):
    """Whether something of that name in a workdir is ours to remove."""
    return name in (*OURS, *STATE, SITE) or REMAINS.fullmatch(name) is not None


def is_marked(workdir):
    """Whether that folder is there and ours; not any more after everything was removed."""
    return os.path.exists(os.path.join(workdir, MARKER))


def contains(folder, path):
    """Whether *path* is that folder or below it; both are real paths."""
    return (path.rstrip("/") + "/").startswith(folder.rstrip("/") + "/")


def make_ours(workdir):
    """Make a folder and mark it as ours; Refused, and nothing is written, where it is somebody else's."""
    home = os.path.realpath(os.path.expanduser("~"))
    if contains(workdir, home):
        text = "The workdir {} is the home folder {} or above it; choose a folder of its own."
        raise Refused("bad_request", text.format(workdir, home))
    os.makedirs(workdir, mode=0o700, exist_ok=True)
    names = set(os.listdir(workdir)) - {ALWAYS_THERE}
    if MARKER in names:
        return
    # Before there were markers the supervisor made all of these at once, and nothing besides what is ours.
    earlier = names.issuperset(OURS) and all(map(is_ours, names))
    if names and not earlier:
        some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        text = "The workdir {} holds files that are not edgebench's ({}); choose a folder of its own."
        raise Refused("bad_request", text.format(workdir, some))
    os.close(os.open(os.path.join(workdir, MARKER), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))


def plain(word):
    """A word that is safe as a file name."""
    if not isinstance(word, str) or not word or len(word) > 100 or set(word) - PLAIN:
        raise Refused("bad_request", "{!r} is no plain word.".format(word))
    return word


def landed(part):
    """Make a whole file durable and give it its name; the error, if that fails."""
    try:
        os.fsync(part.file)
        os.replace(part.path, part.target)
    except Exception as error:
        return error
    finally:
        os.close(part.file)
    return None


def at_once(work, things):
    """[work(thing), …], done in a few threads; *work* raises nothing."""
    results = [None] * len(things)

    def some(first):
        for number in range(first, len(things), THREADS):
            results[number] = work(things[number])

    others = [threading.Thread(target=some, args=(first,)) for first in range(1, min(THREADS, len(things)))]
    for thread in others:
        thread.start()
    some(0)
    for thread in others:
        thread.join()
    return results


def sync_folder(path):
    """Make the names in a folder durable."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def removed(path):
    """Remove a file or a folder; how many bytes it held."""
    if not os.path.lexists(path):
        return 0
    if os.path.islink(path) or not os.path.isdir(path):
        size = os.lstat(path).st_size
        os.unlink(path)
        return size
    import shutil

    size = sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(path) for name in names)
    shutil.rmtree(path)
    return size
