"""The library of `kernels.c`: operators that ONNX Runtime's CPU provider lacks.

The package ships the C source. When the first engine on the CPU is opened, the system's C compiler
makes the library of it, a process of its own checks every operator, and the library is kept in the
user's cache. Every process that loads it checks the operators again. Where there is no compiler, or
a check fails, every graph runs all the same, slower.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from good_rt.engines.cpu.self_test import check_library
from good_rt.errors import GoodRtError
from good_rt.files import sha256
from good_rt.onnx_runtime import CPU_PACKAGE, GPU_PACKAGE, package_version

SWITCH = "GOOD_RT_KERNELS"
"""Environment variable: "0" leaves the kernels out, "avx2" those for AVX-512."""
SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = (
    "-O3", "-std=gnu11", "-fno-wrapv", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
    "-fno-signed-zeros", "-fno-thread-jumps", "-fvisibility=hidden", "-shared", "-fPIC",
    "-Wno-psabi",
)  # fmt: skip
"""None of which lets the compiler take it for granted that a value is finite. Without
-fno-thread-jumps, GCC computes a SiLU three times, once for each side of each bound of its exp."""
WITHOUT_AVX512 = "-DGOOD_RT_WITHOUT_AVX512"
CHECKSUM = ".sha256"
"""How the file's name ends that holds a library's checksum."""
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 300
"""How long compiling and checking may take."""

log = logging.getLogger(__name__)


def kernel_library(avx512: bool = True) -> Path | None:
    """The compiled library of custom operators, which an ONNX Runtime session registers.

    None if `GOOD_RT_KERNELS` switches it off, there is no C compiler, or a check fails; the reason
    is logged once a process.

    Args:
        avx512: False for a library that behaves as on a processor without AVX-512.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    return _library(avx512 and avx512_is_wanted())


def avx512_is_wanted() -> bool:
    """Whether kernels for AVX-512 are not switched off."""
    return os.environ.get(SWITCH) != "avx2"


@cache
def _library(avx512: bool) -> Path | None:
    compiler = find_compiler()
    if compiler is None:
        log.info("no C compiler here: engines run without the CPU kernels, which are faster")
        return None
    try:
        flags = FLAGS if avx512 else (*FLAGS, WITHOUT_AVX512)
        path = built_library(cache_folder(), compiler, flags)
        check_library(path)  # in the ONNX Runtime that this process has loaded
        return path
    except (GoodRtError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("engines run without the CPU kernels: %s", error)
        return None


def find_compiler() -> str | None:
    """The path of the system's C compiler, that of the environment variable CC first."""
    if sys.platform == "win32":
        return None  # the source is written for GCC and Clang
    names = (os.environ.get("CC", ""), *COMPILERS)
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "good-rt" / "kernels"


def built_library(folder: Path, compiler: str, flags: tuple[str, ...] = FLAGS) -> Path:
    """The library in ``folder``, compiled and checked where it is not there yet.

    Its name tells the source, the flags, the compiler, the processor and ONNX Runtime: another one
    of any of them is another library, which is checked again. A library that is not the one that
    was checked, by its SHA-256 in the file beside it, is compiled again.

    Raises:
        GoodRtError: it does not compile, an operator does not compute what it should, or others
            could change what is in the folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)
    path = folder / f"kernels-{_fingerprint(compiler, flags)}.so"
    if not _is_verified(path):
        with _one_process(folder / "lock"):
            # another process may have compiled it by now
            if not _is_verified(path):
                _build(path, compiler, flags)
    check_private(path)
    return path


def _is_verified(path: Path) -> bool:
    """Whether the library is the one that was checked."""
    checksum = path.with_suffix(CHECKSUM)
    return (
        path.exists()
        and checksum.exists()
        and checksum.read_text(encoding="ascii", errors="replace") == sha256(path)
    )


def check_private(path: Path) -> None:
    """Checks that nobody but this user (and root) can change a file or folder, or put another in
    its place.

    Raises:
        GoodRtError: somebody can; it names the folder.
    """
    for part in (path.absolute(), *path.resolve().parents):
        info = part.lstat()
        shared = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if part == path.absolute():
            wrong = shared or info.st_uid != os.geteuid() or stat.S_ISLNK(info.st_mode)
        else:
            wrong = (shared and not sticky) or info.st_uid not in (0, os.geteuid())
        if wrong:
            raise GoodRtError(
                f"{part} can be changed by other users; take their right to write, or set "
                "XDG_CACHE_HOME to a folder of your own"
            )


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run(
        [compiler, "--version"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS,
        check=False,
    )
    packages = (CPU_PACKAGE, GPU_PACKAGE)
    runtimes = [f"{name} {package_version(name) or ''}" for name in packages]
    facts = (*flags, compiler, version.stdout, *_processor(), *runtimes)
    digest = hashlib.sha256(SOURCE.read_bytes())
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:24]


def _processor() -> tuple[str, ...]:
    """The processor's architecture, model and instruction sets, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    known = ("model name", "flags", "Features")
    facts = {line for line in lines if line.partition(":")[0].strip() in known}
    return platform.machine(), platform.system(), *sorted(facts)


def _build(path: Path, compiler: str, flags: tuple[str, ...]) -> None:
    """Compiles and checks the library; only one that is right gets its name."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        library = Path(folder, path.name)
        compiled = _ran([compiler, *flags, str(SOURCE), "-o", str(library), "-lm"])
        if compiled is not None:
            raise GoodRtError(f"{compiler} does not compile {SOURCE} ({compiled})")
        library.chmod(0o700)
        # in a process of its own, which a wrong table of functions may crash; -P: not the package
        # that may lie in the current folder
        checked = _ran([sys.executable, "-P", "-m", "good_rt.engines.cpu.self_test", str(library)])
        if checked is not None:
            raise GoodRtError(f"the kernels fail their self-test here ({checked})")
        path.with_suffix(CHECKSUM).write_text(sha256(library), encoding="ascii")
        library.replace(path)


def _ran(command: list[str]) -> str | None:
    """None for a command that succeeds, else the first line that says why not."""
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {SECONDS} s"
    if ended.returncode == 0:
        return None
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines[-1:]
    return errors[0] if errors else f"status {ended.returncode}"


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Waits until no other process is in this block for the same file."""
    import fcntl  # which Windows lacks, where nothing is compiled

    with path.open("wb") as file:
        path.chmod(0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
