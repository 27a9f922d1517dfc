# SPDX-License-Identifier: Apache-2.0
"""What is built: headers that stand alone, and libraries that export what they promise and nothing else."""

import re
import subprocess

import pytest

from harness import BUILD, ROOT, SANITIZED

HEADERS = sorted(path.name for path in (ROOT / "include" / "coal").glob("*.h"))
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT / 'include'}", "-D_GNU_SOURCE"]

pytestmark = pytest.mark.skipif(SANITIZED, reason="the same in every build: `make check` runs it")


@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone(header):
    code = f"#include <coal/{header}>\n#include <coal/{header}>\n"
    subprocess.run(["gcc", "-std=gnu11", *WARNINGS, "-xc", "-"], input=code, text=True, check=True)


def test_public_header_compiles_as_cxx():
    code = "#include <coal/coal.h>\nint main() { coal_pool_opts opts = COAL_POOL_OPTS_INIT; return opts.size == 0; }\n"
    subprocess.run(["g++", "-std=c++17", *WARNINGS, "-xc++", "-"], input=code, text=True, check=True)


def exported(library):
    out = subprocess.run(["nm", "-D", "--defined-only", BUILD / library], capture_output=True, text=True, check=True).stdout
    return {line.split()[2].split("@")[0] for line in out.splitlines() if line.split()[1] not in "Aa"}


def test_libcoal_exports_what_coal_h_declares_and_nothing_else():
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "include/coal/coal.h").read_text(), flags=re.S)
    declared = set(re.findall(r"\b(coal_\w+)\s*\(", text)) - {"coal_log_fn"}
    assert exported("libcoal.so") == declared


def test_libcoal_symbols_are_versioned():
    out = subprocess.run(["nm", "-D", "--defined-only", "--with-symbol-versions", BUILD / "libcoal.so"], capture_output=True,
                         text=True, check=True).stdout
    assert re.search(r"coal_map@@COAL_0\.1\b", out)


def test_libcoal_malloc_hides_jemalloc_and_its_own_functions():
    names = exported("libcoal-malloc.so")
    assert {"malloc", "free", "calloc", "realloc", "aligned_alloc", "posix_memalign", "malloc_usable_size", "fork", "mmap", "_Znwm",
            "_ZdlPv"} <= names
    assert not [name for name in names if re.match(r"je_|mallctl|mallocx|coal_|heap_", name)]
