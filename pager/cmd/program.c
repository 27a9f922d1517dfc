/* SPDX-License-Identifier: Apache-2.0 */
/*
 * program.c - will this program load what LD_PRELOAD names? A static, foreign or set-user-ID program ignores it and would
 * run with local memory only; saying so beats running it in a way that was not asked for.
 */
#include "cmd.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#if defined(__x86_64__)
#define OUR_MACHINE EM_X86_64
#elif defined(__aarch64__)
#define OUR_MACHINE EM_AARCH64
#else
#error "name the ELF machine of this architecture"
#endif

#define SCRIPT_DEPTH 4 /* as the kernel's limit on interpreters of interpreters */

static int is_program(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EISDIR;
	return access(path, X_OK) ? -errno : 0;
}

static int complain_program(const char *name, int err)
{
	if (err == -ENOENT || err == -ENOTDIR) {
		complain("there is no program '%s'; check the name and PATH", name);
		return EXIT_NOT_FOUND;
	}
	complain("'%s' can't be executed: %s; is it the program you meant, and has it execute permission (chmod +x)?", name,
		 err == -EISDIR ? "not a file" : strerror(-err));
	return EXIT_NOT_EXECUTABLE;
}

int program_find(const char *name, char path[], size_t size)
{
	const char *search = getenv("PATH");
	int err, worst = -ENOENT;

	if (strchr(name, '/')) {
		err = strlen(name) < size ? is_program(name) : -ENAMETOOLONG;
		if (err)
			return complain_program(name, err);
		strcpy(path, name);
		return 0;
	}
	if (!search)
		search = "/bin:/usr/bin";
	for (const char *end; *name; search = end + 1) {
		end = strchrnul(search, ':');
		int len = (int)(end - search);
		if (snprintf(path, size, "%.*s%s%s", len, search, len ? "/" : "./", name) < (int)size) {
			err = is_program(path);
			if (!err)
				return 0;
			if (err != -ENOENT && err != -ENOTDIR)
				worst = err;
		}
		if (!*end)
			break;
	}
	return complain_program(name, worst);
}

/* The dynamic loader that an ELF file asks for. -ENOEXEC: not an ELF file of this machine; -ENOENT: it asks for none. */
static int elf_loader(int fd, char loader[], size_t size)
{
	Elf64_Ehdr eh;
	Elf64_Phdr ph;

	if (pread(fd, &eh, sizeof(eh), 0) != sizeof(eh) || memcmp(eh.e_ident, ELFMAG, SELFMAG))
		return -ENOEXEC;
	if (eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_machine != OUR_MACHINE || eh.e_phentsize != sizeof(ph))
		return -ENOEXEC;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		if (pread(fd, &ph, sizeof(ph), (off_t)(eh.e_phoff + i * sizeof(ph))) != sizeof(ph))
			return -ENOEXEC;
		if (ph.p_type != PT_INTERP)
			continue;
		if (ph.p_filesz > size || pread(fd, loader, ph.p_filesz, (off_t)ph.p_offset) != (ssize_t)ph.p_filesz)
			return -ENOEXEC;
		loader[ph.p_filesz ? ph.p_filesz - 1 : 0] = 0;
		return 0;
	}
	return -ENOENT;
}

static const char *base(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

static int check_elf(const char *path, int fd)
{
	char loader[PATH_MAX], ours[PATH_MAX];
	int err = elf_loader(fd, loader, sizeof(loader));

	if (err == -ENOEXEC) {
		complain("'%s' is not a program for this machine; use one built for it", path);
		return EXIT_NOT_EXECUTABLE;
	}
	if (err) {
		complain("'%s' is linked statically, so no allocator can be put under it; use a dynamically linked build",
			 path);
		return EXIT_NOT_EXECUTABLE;
	}
	int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	if (self < 0)
		return 0;
	err = elf_loader(self, ours, sizeof(ours));
	close(self);
	if (!err && strcmp(base(loader), base(ours))) {
		complain("'%s' uses another C library (%s) than coal (%s); use a build for this one", path, base(loader),
			 base(ours));
		return EXIT_NOT_EXECUTABLE;
	}
	return 0;
}

/* The loader ignores LD_PRELOAD where the kernel gives the program rights that its caller has not. */
static int check_rights(const char *path, int fd)
{
	struct stat st;
	const char *why = NULL;

	if (fstat(fd, &st))
		return 0;
	if ((st.st_mode & S_ISUID) && st.st_uid != getuid())
		why = "set-user-ID";
	else if ((st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) && st.st_gid != getgid())
		why = "set-group-ID";
	else if (getuid() && fgetxattr(fd, "security.capability", NULL, 0) > 0)
		why = "has file capabilities";
	if (!why)
		return 0;
	complain("'%s' is privileged (%s), and the loader lets nobody put an allocator under such a program; "
		 "run coal as the user it runs as, or use a copy without that bit",
		 path, why);
	return EXIT_NOT_EXECUTABLE;
}

static int check_file(const char *path, unsigned depth);

/* line holds the start of a script, after "#!". */
static int check_interpreter(const char *path, char *line, unsigned depth)
{
	char *name = line + strspn(line, " \t");

	name[strcspn(name, " \t\n")] = 0;
	if (!*name || depth == SCRIPT_DEPTH) {
		complain("'%s' has no usable interpreter in its first line; give it one, such as #!/bin/sh", path);
		return EXIT_NOT_EXECUTABLE;
	}
	int err = is_program(name);
	if (err) {
		complain("the interpreter '%s' of '%s' can't be executed: %s; install it or mend the script's first line",
			 name, path, strerror(-err));
		return err == -ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
	}
	return check_file(name, depth + 1);
}

static int check_file(const char *path, unsigned depth)
{
	char head[256] = "";
	int status, fd = open(path, O_RDONLY | O_CLOEXEC);

	/* May be executed but not read: the kernel decides. */
	if (fd < 0)
		return 0;
	ssize_t n = pread(fd, head, sizeof(head) - 1, 0);
	if (n > 2 && head[0] == '#' && head[1] == '!') {
		status = check_interpreter(path, head + 2, depth);
	} else if (n >= SELFMAG && !memcmp(head, ELFMAG, SELFMAG)) {
		status = check_elf(path, fd);
		if (!status)
			status = check_rights(path, fd);
	} else {
		complain("'%s' is neither a program nor a script that names its interpreter; "
			 "give it a first line such as #!/bin/sh", path);
		status = EXIT_NOT_EXECUTABLE;
	}
	close(fd);
	return status;
}

int program_check(const char *path)
{
	return check_file(path, 0);
}
