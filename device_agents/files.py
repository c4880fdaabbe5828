"""Files on a device: pushed, resumed after a cut, verified, durable before they get their name."""

import fnmatch
import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EDQUOT, ENOSPC

from keeper import Refused

BLOCK = 1 << 18
OURS = ("files", "parts", "jobs", "links")  # folders that nothing may be unpacked over
PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class Part:
    """A file on its way: written beside, hashed as it comes."""

    def __init__(self, path, target, wanted, offset):
        self.path, self.target, self.wanted = path, target, wanted
        new = os.O_CREAT | os.O_TRUNC if offset == 0 else 0
        self.file = os.open(path, os.O_RDWR | new, 0o600)
        self.hash, self.size = hashlib.sha256(), 0
        while True:  # what an earlier connection brought
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
        for name in ("", *OURS):
            os.makedirs(os.path.join(workdir, name), mode=0o700, exist_ok=True)
        self.workdir = os.path.realpath(workdir)
        self.parts, self.whole, self.known = {}, [], {}

    def place(self, folder, name):
        """The path of *name* below a folder of ours; Refused when it would be elsewhere."""
        words = name.split("/") if isinstance(name, str) else [""]
        if any(word in ("", ".", "..") for word in words) or "\0" in name or len(name) > 1000:
            raise Refused("bad_request", "{!r} is no plain name of a file below the workdir.".format(name))
        root = os.path.join(self.workdir, folder) if folder else self.workdir
        path = os.path.join(root, name)
        if not (os.path.realpath(os.path.dirname(path)) + "/").startswith(root + "/"):
            raise Refused("bad_request", "{!r} leaves the workdir by a link.".format(name))
        return path

    def have(self, files):
        """Which of them are missing or other than wanted, and how much of each came already."""
        missing = {}
        for name, (sha256, size) in files.items():
            if self.content(self.place("files", name), size) == sha256:
                continue
            self.forget(name, sha256)
            part = self.part_path(name, sha256)
            there = os.path.getsize(part) if os.path.exists(part) else 0
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
        folder, count, size = self.free_place(into), 0, 0
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

    def free_place(self, name):
        """The path of a folder that is no folder of the supervisor itself."""
        path = self.place("", name)
        if name.split("/")[0] in (*OURS, "lease.json", "janitor.json", "lock", "restore.json"):
            raise Refused("bad_request", "{!r} is a name that the supervisor uses itself.".format(name))
        return path

    def remove(self, names):
        """Remove what push and unpack made, by the names they were given; how many bytes that was."""
        paths = [self.place("files", name) for name in names] + [self.free_place(name) for name in names]
        return {"removed_bytes": sum(map(removed, paths))}

    def settle(self):
        """Make whole files durable and give them their names; (facts of the answer, error) of failures."""
        whole, self.whole = self.whole, []
        if not whole:
            return []
        with ThreadPoolExecutor(16) as pool:  # at once: then they share the disk's commits
            errors = list(pool.map(landed, [part for _, part in whole]))
        for folder in {os.path.dirname(part.target) for _, part in whole}:
            sync_folder(folder)
        return [(facts, error) for (facts, _), error in zip(whole, errors) if error is not None]


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
    except OSError as error:
        return error
    finally:
        os.close(part.file)
    return None


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
    size = sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(path) for name in names)
    shutil.rmtree(path)
    return size
