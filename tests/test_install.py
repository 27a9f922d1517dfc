# SPDX-License-Identifier: Apache-2.0
"""make install: what arrives works from where it arrives, can be built against, is documented, and goes away again."""

import os
import re
import shutil
import subprocess

import pytest

from harness import BUILD, ROOT, SANITIZED

MANUAL = ROOT / "pager" / "libcoal.3"
COMMAND_MANUAL = ROOT / "pager" / "cmd" / "coal.1"
BOUND = 100

pytestmark = pytest.mark.skipif(SANITIZED, reason="nobody installs a sanitized build")

COMPILERS = {"c": ["gcc", "-x", "c", "-std=c11"], "c++": ["g++", "-x", "c++", "-std=c++11"]}
FLAGS = ["-Wall", "-Wextra", "-Werror"]
EXAMPLE = re.compile(r'^\.\\" example (\w+)\n\.EX\n(.*?)^\.EE\n\.\\" end$', re.M | re.S)


def run(argv, **options):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COAL_", "MAKE", "MFLAGS")) and k != "LD_PRELOAD"}
    env.update(options.pop("env", {}))
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=BOUND, stdin=subprocess.DEVNULL,
                          env=env, **options)


def make(*argv):
    done = run(["make", "-C", ROOT, f"B={os.path.relpath(BUILD, ROOT)}", *argv])
    assert done.returncode == 0, done
    return done


def files_below(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """An installation in a PREFIX of its own."""
    path = tmp_path_factory.mktemp("installed")
    make("install", f"PREFIX={path}")
    return path


def test_what_is_installed(prefix):
    assert {"bin/coal", "bin/pflat", "sbin/memserver", "lib/libcoal.so", "lib/libcoal.so.0", "lib/libcoal-malloc.so",
            "lib/pkgconfig/coal.pc", "include/coal/coal.h", "share/man/man1/coal.1",
            "share/man/man3/libcoal.3"} <= files_below(prefix)
    headers = [p.name for p in (prefix / "include" / "coal").iterdir()]
    assert headers == ["coal.h"], "contracts between rooms are no user's business"


def test_nothing_installed_knows_the_build_folder(prefix):
    for path in prefix.rglob("*"):
        if path.is_symlink():
            assert not os.readlink(path).startswith("/"), path
        elif path.suffix in (".pc", ".service"):
            assert str(BUILD) not in path.read_text(), path
        elif path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
            assert str(BUILD) not in run(["readelf", "-d", path]).stdout, path


def test_the_installed_coal_runs_programs(prefix):
    done = run([prefix / "bin" / "coal", "run", "--", "sh", "-c", "echo $LD_PRELOAD; exit 7"], cwd="/")
    assert (done.returncode, done.stdout) == (7, f"{prefix}/lib/libcoal-malloc.so\n"), done


def test_the_installed_doctor_finds_its_library(prefix):
    assert f"{prefix}/lib/libcoal-malloc.so" in run([prefix / "bin" / "coal", "doctor"], cwd="/").stdout


def pkg_config(prefix, *argv):
    done = run(["pkg-config", *argv, "coal"], env={"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")})
    assert done.returncode == 0, done
    return done.stdout.split()


@pytest.mark.parametrize("language", COMPILERS)
def test_a_program_builds_with_the_flags_of_pkg_config(prefix, tmp_path, language):
    code = '#include <coal/coal.h>\nint main(void) { int x = 0; return coal_is_mapped(&x); }\n'
    (tmp_path / "p.c").write_text(code)
    flags = pkg_config(prefix, "--cflags", "--libs")
    done = run([*COMPILERS[language], *FLAGS, tmp_path / "p.c", "-x", "none", "-o", tmp_path / "p", *flags])
    assert done.returncode == 0, done
    assert run([tmp_path / "p"], env={"LD_LIBRARY_PATH": str(prefix / "lib")}).returncode == 0


def test_pkg_config_has_the_version_of_the_command(prefix):
    assert run([prefix / "bin" / "coal", "--version"]).stdout.split()[1] == pkg_config(prefix, "--modversion")[0]


def test_destdir_is_put_before_prefix_and_nowhere_else(tmp_path):
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/opt/coal")
    assert "opt/coal/bin/coal" in files_below(tmp_path)
    assert "prefix=/opt/coal\n" in (tmp_path / "opt/coal/lib/pkgconfig/coal.pc").read_text()
    done = run([tmp_path / "opt/coal/bin/coal", "run", "--", "true"], cwd="/")
    assert done.returncode == 0, done


def test_uninstall_leaves_only_what_it_did_not_bring(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libother.so").touch()
    make("install", f"PREFIX={tmp_path}")
    make("uninstall", f"PREFIX={tmp_path}")
    assert files_below(tmp_path) == {"lib/libother.so"}


# The manual -----------------------------------------------------------------------------------------------------------

def examples():
    """The programs in libcoal.3, as a reader of the page would copy them."""
    found = dict(EXAMPLE.findall(MANUAL.read_text()))
    return {name: code.replace(r"\(aq", "'").replace(r"\-", "-").replace(r"\e", "\\") for name, code in found.items()}


def test_the_manual_has_examples():
    assert len(examples()) >= 3
    assert MANUAL.read_text().count("\n.EX\n") == len(examples()), "an example without markers is not tested"


@pytest.mark.parametrize("language", COMPILERS)
@pytest.mark.parametrize("name", examples())
def test_example_compiles_and_runs(prefix, tmp_path, memserver, name, language):
    (tmp_path / "example").write_text(examples()[name])
    flags = pkg_config(prefix, "--cflags", "--libs")
    built = run([*COMPILERS[language], *FLAGS, tmp_path / "example", "-x", "none", "-o", tmp_path / "p", *flags])
    assert built.returncode == 0, built
    done = run([tmp_path / "p", memserver(capacity="4G").address], env={"LD_LIBRARY_PATH": str(prefix / "lib")})
    assert done.returncode == 0, done


def test_the_manual_names_every_function_and_no_other():
    header = re.sub(r"/\*.*?\*/", "", (ROOT / "include/coal/coal.h").read_text(), flags=re.S)
    declared = set(re.findall(r"^\w[\w ]*?(coal_\w+)\(", header, re.M))
    synopsis = MANUAL.read_text().partition(".SH SYNOPSIS")[2].partition(".SH DESCRIPTION")[0]
    assert set(re.findall(r"(coal_\w+)\(", synopsis)) == declared
    described = set(re.findall(r"(coal_\w+)\(\)", MANUAL.read_text().partition(".SH DESCRIPTION")[2]))
    assert described == declared


def test_every_exported_function_has_a_version():
    lines = run(["nm", "-D", "--defined-only", "--with-symbol-versions", BUILD / "libcoal.so"]).stdout.splitlines()
    functions = [line.split()[2] for line in lines if line.split()[1] == "T"]
    assert functions and all(re.fullmatch(r"coal_\w+@@COAL_\d+\.\d+", f) for f in functions)


@pytest.mark.parametrize("command", ["run", "stat", "top", "doctor"])
def test_the_manual_has_every_option_of(command):
    shown = run([BUILD / "coal", command, "--help"]).stdout
    options = set(re.findall(r"--([a-z][a-z-]*)", shown)) - {"help", "usage", "version"}
    manual = COMMAND_MANUAL.read_text().replace("\\-", "-")
    assert options and not [option for option in options if f"--{option}" not in manual]


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*/*.[138]"), *ROOT.glob("*/cmd/*.1")]), ids=lambda path: path.name)
def test_man_page_renders_without_a_warning(page):
    if not shutil.which("man"):
        pytest.skip("no man(1)")
    done = run(["man", "--warnings=all", "-l", page], env={"MANWIDTH": "100", "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0 and done.stderr == "", done
