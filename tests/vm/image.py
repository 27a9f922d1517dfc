# SPDX-License-Identifier: Apache-2.0
"""A kernel and its packages from Debian, unpacked below build/vm and never installed; an initramfs that mounts them."""

import fcntl
import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ["busybox-static", "kmod", "libkmod2"]  # beside the kernel

# What it takes to reach the root file system and the host; everything else is there for modprobe after that.
FIRST_MODULES = ["virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p", "overlay", "crc32c_generic", "ext4"]


class Unavailable(Exception):
    """No guest can be made here; says why."""


class Image:
    """One kernel: `vmlinux` to boot, `root` with everything that its packages hold."""

    def __init__(self, folder):
        self.vmlinux, self.root = folder / "vmlinux", folder / "root"
        self.release = next((self.root / "lib/modules").iterdir()).name

    def write_initramfs(self, path):
        modules = self._first_modules()
        with open(path, "wb") as out:
            archive = Cpio(out)
            for name in ("bin", "dev", "proc", "sys", "modules", "host", "packages", "disk", "root"):
                archive.add(name, 0o040755)
            archive.add("init", 0o100755, (HERE / "init").read_bytes())
            archive.add("agent", 0o100755, (HERE / "agent").read_bytes())
            archive.add("bin/busybox", 0o100755, (self.root / "bin/busybox").read_bytes())
            for n, module in enumerate(modules):  # init loads them in the order of their names
                archive.add(f"modules/{n:02}-{module.name}", 0o100644, module.read_bytes())
            archive.end()

    def _first_modules(self):
        """The files of FIRST_MODULES and of what they need, in the order in which they can be loaded."""
        needs = {}
        base = self.root / "lib/modules" / self.release
        for line in (base / "modules.dep").read_text().splitlines():
            module, _, others = line.partition(":")
            needs[Path(module).stem] = [base / other for other in [module, *others.split()]]
        order = []
        for name in FIRST_MODULES:
            order += [module for module in reversed(needs[name]) if module not in order]
        return order


class Cpio:
    """The format of an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's sources)."""

    def __init__(self, out):
        self.out, self.inode = out, 0

    def add(self, name, mode, data=b""):
        self.inode += 1
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        self._padded(b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0")
        self._padded(data)

    def _padded(self, data):
        self.out.write(data + bytes(-len(data) % 4))

    def end(self):
        self.add("TRAILER!!!", 0)


def get(kernel, folder):
    """The image of a kernel package, or of the one that a meta package such as linux-image-amd64 depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once: the second finds what the first has made
        at = folder / kernel
        if not (at / "packages").exists() or (at / "packages").read_text().split() != PACKAGES:
            make(kernel, at)
    return Image(at)


def make(kernel, at):
    new = at.with_name(at.name + ".new")
    for stale in (new, at):
        shutil.rmtree(stale, ignore_errors=True)
    (new / "debs").mkdir(parents=True)
    download([concrete(kernel), *PACKAGES], new / "debs")
    unpack(sorted((new / "debs").glob("*.deb")), new / "root")
    shutil.rmtree(new / "debs")
    release = next((new / "root/lib/modules").iterdir()).name
    depmod(new / "root", release)
    write_vmlinux(new / "root/boot" / f"vmlinuz-{release}", new / "vmlinux")
    (new / "packages").write_text("\n".join(PACKAGES) + "\n")
    new.rename(at)


def concrete(kernel):
    depends = apt("apt-cache", "depends", "--important", kernel)
    names = [line.split()[1] for line in depends.splitlines() if line.strip().startswith("Depends: linux-image-")]
    return names[0] if names else kernel


def download(names, where):
    apt("apt-get", "download", "-qq", *names, cwd=where)


def apt(*argv, **options):
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False, **options)
    except FileNotFoundError as missing:
        raise Unavailable("no apt here to download the guest's packages with") from missing
    if done.returncode:
        raise Unavailable(f"{' '.join(argv)}: {done.stderr.strip().splitlines()[-1]} (apt-get update may help)")
    return done.stdout


def unpack(packages, root):
    # As on a merged system: /bin, /lib and /sbin are links, also in packages that say otherwise.
    for name in ("bin", "lib", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as tar:
            subprocess.run(["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", root], stdin=tar.stdout, check=True)
        if tar.returncode:
            raise Unavailable(f"{package} can't be unpacked")


def depmod(root, release):
    """Packages carry no list of their modules' dependencies: it is made where they are installed."""
    library = {"LD_LIBRARY_PATH": str(root / "usr/lib/x86_64-linux-gnu")}
    subprocess.run(["depmod", "-b", root, release], executable=root / "bin/kmod", env={**os.environ, **library}, check=True)


def write_vmlinux(bzimage, path):
    """The kernel without its decompressor, which an emulated processor takes five seconds for
    (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length)."""
    image = bzimage.read_bytes()
    setup_sects = image[0x1f1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sects + 1) * 512 + offset
    payload = image[start:start + length - 4]  # behind it: its unpacked size
    if not payload.startswith(b"\xfd7zXZ"):
        raise Unavailable(f"{bzimage} is not packed with xz")
    path.write_bytes(lzma.decompress(payload))
