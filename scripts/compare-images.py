"""Compares two images saved as docker-archives, and prints the first difference.

Usage: compare-images.py [--docker-20] [--mtimes=START] [--mounted=PATH]... BUILDKIT.tar RBUILD.tar

BuildKit leaves empty mount points (given by --mounted=PATH) in the layers of RUN; they are ignored.
Docker 20.10 contains a BuildKit of 2020. With --docker-20, some of its differences from later
versions are ignored:
- The history has no flags of COPY and ADD and no values of ARG, and formats EXPOSE and HEALTHCHECK
  differently.
- A stage does not inherit the ARGs of the stage that it is based on.
- Layers keep no extended attributes but capabilities, so only those are compared.
With --mtimes, all times from START on, in seconds since 1970, are times of the build and equal. A directory that was
written during BuildKit's build may have any time in rbuild's image.
"""

import hashlib
import io
import json
import re
import sys
import tarfile

CONFIG = [
    "Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Labels", "ExposedPorts", "Volumes", "OnBuild", "Shell",
    "StopSignal", "Healthcheck",
]
DOCUMENT = ["architecture", "variant", "os", "author"]
HISTORY = ["created_by", "comment", "author", "empty_layer"]
KINDS = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.CONTTYPE: "file", tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "link", tarfile.CHRTYPE: "character device", tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo", tarfile.GNUTYPE_SPARSE: "file",
}
MOUNTED = {"dev", "proc", "sys", "etc/hosts", "etc/resolv.conf", "dev/console", "dev/pts", "dev/shm", "dev/mqueue"}
XATTR = "SCHILY.xattr."
CAPABILITY = XATTR + "security.capability"

OF_THE_BUILD = "of the build"


class Archive:
    """A saved image: its configuration and the file system that results from its layers."""

    def __init__(self, path, mtimes, attributes):
        self.attributes = attributes
        self.tar = tarfile.open(path)
        manifest = json.load(self.tar.extractfile("manifest.json"))[0]
        self.config = json.load(self.tar.extractfile(manifest["Config"]))
        self.layers = len(manifest["Layers"])
        self.files = {}
        for layer in manifest["Layers"]:
            self.apply(io.BytesIO(self.open(layer).read()), mtimes)
        self.name_link_groups()

    def open(self, name):
        """Opens a member. In old archives, repeated layers are links."""
        return self.tar.extractfile(self.tar.getmember(name))

    def apply(self, layer, mtimes):
        here = set()
        tar = tarfile.open(fileobj=layer)
        for entry in tar:
            path = entry.name.strip("/").removeprefix("./")
            above, _, name = path.rpartition("/")
            if name == ".wh..wh..opq":
                self.remove_below(above, here)
            elif name.startswith(".wh."):
                self.remove(f"{above}/{name[4:]}".lstrip("/"))
            elif path not in ("", "."):
                self.put(path, entry, tar, mtimes)
                here.add(path)

    def put(self, path, entry, tar, mtimes):
        if entry.islnk():
            self.remove(path)
            self.files[path] = self.files[entry.linkname.strip("/").removeprefix("./")]
            return
        kind = KINDS.get(entry.type, f"type {entry.type}")
        if kind != "directory":
            self.remove(path)
        node = {"kind": kind, "mode": oct(entry.mode & 0o7777), "owner": f"{entry.uid}:{entry.gid}"}
        if kind == "file":
            node["size"] = entry.size
            node["content"] = hashlib.sha256(tar.extractfile(entry).read()).hexdigest()
        elif kind == "link":
            node["target"], node["mode"] = entry.linkname, "0o777"
        elif "device" in kind:
            node["device"] = f"{entry.devmajor}:{entry.devminor}"
        node["attributes"] = {k: v for k, v in sorted(entry.pax_headers.items()) if k.startswith(self.attributes)}
        if mtimes:
            node["mtime"] = OF_THE_BUILD if entry.mtime >= mtimes else int(entry.mtime)
        self.files[path] = node

    def remove(self, path):
        self.files.pop(path, None)
        self.remove_below(path, ())

    def remove_below(self, path, but):
        inside = path + "/" if path else ""
        for known in [p for p in self.files if p.startswith(inside) and p not in but]:
            del self.files[known]

    def name_link_groups(self):
        groups = {}
        for path, node in self.files.items():
            groups.setdefault(id(node), []).append(path)
        for paths in groups.values():
            self.files[paths[0]]["names"] = sorted(paths)


def is_mount_point(path, node, mounted):
    """Returns true for mount points and their parents, which BuildKit leaves in the layer as empty entries."""
    over = path in MOUNTED or any((point + "/").startswith(path + "/") or path.endswith("/" + point) for point in mounted)
    return over and node.get("size", 0) == 0


def same_step(theirs, ours):
    """Returns true if two history entries describe the same instruction."""
    if theirs.startswith("RUN ") and not theirs.startswith("RUN |") and ours.startswith("RUN |"):
        return ours.endswith(theirs.removeprefix("RUN"))
    return in_common(theirs) == in_common(ours)


def in_common(step):
    instruction, _, rest = step.partition(" ")
    if instruction in ("COPY", "ADD"):
        return re.sub(r"^(\w+)( --\S+)+", r"\1", step)
    if instruction == "ARG":
        return [word.partition("=")[0] for word in rest.split()]
    if instruction == "EXPOSE":
        return sorted(re.findall(r"\d+/\w+", rest))
    return instruction if instruction == "HEALTHCHECK" else step


def first_difference(theirs, ours, mounted, old):
    for path in sorted(theirs.files.keys() | ours.files.keys()):
        a, b = theirs.files.get(path), ours.files.get(path)
        if (a is None or b is None) and is_mount_point(path, a or b, mounted):
            continue
        if a is None or b is None:
            return f"/{path} is {'not there in' if b is None else 'only in'} rbuild's ({(a or b)['kind']})"
        for what in a.keys() | b.keys():
            filled = what == "mtime" and a["kind"] == "directory" and a["mtime"] == OF_THE_BUILD
            if a.get(what) != b.get(what) and not filled:
                return f"/{path}: {what} {a.get(what)} by BuildKit, {b.get(what)} by rbuild"
    for what in CONFIG:
        a, b = (i.config.get("config", {}).get(what) or None for i in (theirs, ours))
        if a != b:
            return f"configuration {what}: {json.dumps(a)} by BuildKit, {json.dumps(b)} by rbuild"
    for what in DOCUMENT:
        a, b = (i.config.get(what) or None for i in (theirs, ours))
        if a != b:
            return f"{what}: {a} by BuildKit, {b} by rbuild"
    a, b = ([{k: h.get(k) or None for k in HISTORY} for h in i.config.get("history", [])] for i in (theirs, ours))
    for number, (x, y) in enumerate(zip(a, b), 1):
        for what in HISTORY:
            if x[what] != y[what] and not (old and what == "created_by" and same_step(x[what] or "", y[what] or "")):
                return f"history {number}, {what}: {x[what]!r} by BuildKit, {y[what]!r} by rbuild"
    if len(a) != len(b):
        return f"history: {len(a)} entries by BuildKit, {len(b)} by rbuild"
    if theirs.layers != ours.layers:
        return f"layers: {theirs.layers} by BuildKit, {ours.layers} by rbuild"
    return None


def main():
    words = [w for w in sys.argv[1:] if not w.startswith("--")]
    mounted = [w.removeprefix("--mounted=").strip("/") for w in sys.argv if w.startswith("--mounted=")]
    start = [int(w.removeprefix("--mtimes=")) for w in sys.argv if w.startswith("--mtimes=")]
    old = "--docker-20" in sys.argv
    attributes = CAPABILITY if old else XATTR
    theirs, ours = (Archive(path, start[0] if start else None, attributes) for path in words)
    found = first_difference(theirs, ours, mounted, old)
    if found:
        print(found)
        sys.exit(1)


main()
