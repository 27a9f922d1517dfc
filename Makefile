# SPDX-License-Identifier: Apache-2.0
# Coalesce. `make help` lists the targets; V=1 shows whole commands.
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules

VERSION  := 0.1.0
B        ?= build
PREFIX   ?= /usr/local
DESTDIR  ?=
CC       := gcc
CXX      := g++
CFLAGS   ?= -O2 -g
SAN      ?=
WARN     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wformat=2 -Wundef
ALL_CFLAGS = -std=gnu11 $(WARN) $(CFLAGS) $(SAN) -fPIC -fvisibility=hidden -pthread -D_GNU_SOURCE -DCOAL_VERSION='"$(VERSION)"' -Iinclude -Ipager -MMD -MP
ALL_LDFLAGS = $(SAN) -pthread -Wl,--as-needed -Wl,-z,relro,-z,now $(LDFLAGS)

# What a new Debian 12 needs, and why.
DEPS_BUILD := gcc g++ make pkg-config libc6-dev linux-libc-dev \
	libssl-dev \
	libxxhash-dev \
	libmicrohttpd-dev \
	libjemalloc-dev \
	libjansson-dev
DEPS_TEST := libcmocka-dev python3-pytest python3-pytest-timeout redis-server redis-tools python3-redis sqlite3 \
	xz-utils git curl iproute2 man-db binutils procps python3 coreutils util-linux \
	qemu-system-x86 e2fsprogs libhiredis-dev
# Only for `make bench`: pictures; and the peers: nbdkit's memory export, nbdfuse, which makes a file of it, and its helper.
DEPS_BENCH := gnuplot-nox nbdkit libnbd-bin fuse3
DEPS_LINT := clang clang-tidy cppcheck libclang-rt-14-dev

Q = $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(patsubst $(B)/%,%,$(2))')

LIBCOAL_SRC   := $(wildcard pager/*.c)
MALLOC_SRC    := $(wildcard pager/malloc/*.c)
COAL_SRC      := $(wildcard pager/cmd/*.c)
MEMSERVER_SRC := $(wildcard memserver/*.c)
PFLAT_SRC     := $(wildcard bench/pflat*.c bench/peer*.c)
KERNEL_SRC    := $(wildcard bench/apps/*.c)
UNIT_SRC      := $(wildcard tests/unit/*.c)
API_SRC       := $(wildcard tests/api/*.c)
STRESS_SRC    := $(wildcard tests/stress/*.c)
obj = $(patsubst %.c,$(B)/obj/%.o,$(1))

BINARIES := $(B)/coal $(B)/memserver $(B)/libcoal.so $(B)/libcoal-malloc.so $(B)/pflat
KERNELS  := $(patsubst %.c,$(B)/%,$(KERNEL_SRC))
UNIT     := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(UNIT_SRC))
API      := $(patsubst tests/api/%.c,$(B)/tests/api/%,$(API_SRC))
STRESS   := $(B)/tests/stress/stress
APPS     := $(patsubst tests/apps/%.c,$(B)/tests/apps/%,$(wildcard tests/apps/*.c)) \
	$(patsubst tests/apps/%.cpp,$(B)/tests/apps/%,$(wildcard tests/apps/*.cpp))

.PHONY: all
all: $(BINARIES)  ## build everything into build/

$(B)/obj/%.o: %.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(CFLAGS_$(firstword $(subst /, ,$*))) -c -o $@ $<

$(B)/libcoal.so: $(call obj,$(LIBCOAL_SRC)) pager/libcoal.map
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -shared -Wl,-soname,libcoal.so.0 -Wl,--version-script=pager/libcoal.map -o $@ $(filter %.o,$^) -lcrypto -lxxhash
	$(Q)ln -sf libcoal.so $(B)/libcoal.so.0

# jemalloc under the prefix je_, its system calls and fork handlers redirected (pager/malloc/README.md).
JEMALLOC_PIC = $(shell $(CC) -print-file-name=libjemalloc_pic.a)
$(B)/libjemalloc.a: pager/malloc/jemalloc.syms
	$(call say,OBJCOPY,$@)
	@mkdir -p $(@D)
	$(Q)objcopy --redefine-syms=$< --weaken-symbol=je_opt_cache_oblivious $(JEMALLOC_PIC) $@

$(B)/libcoal-malloc.so: $(call obj,$(MALLOC_SRC)) pager/malloc/malloc.map $(B)/libjemalloc.a $(B)/libcoal.so
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -shared -Wl,--version-script=pager/malloc/malloc.map -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' \
		-o $@ $(filter %.o,$^) $(B)/libjemalloc.a -L$(B) -lcoal -ldl -lm

$(B)/coal: $(call obj,$(COAL_SRC)) $(B)/libcoal.so
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' -o $@ $(filter %.o,$^) -L$(B) -lcoal -ljansson -lm

$(B)/memserver: $(call obj,$(MEMSERVER_SRC))
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $(filter %.o,$^) -lcrypto -lmicrohttpd -lm

$(B)/pflat: $(call obj,$(PFLAT_SRC)) $(B)/libcoal.so
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' -o $@ $(filter %.o,$^) -L$(B) -lcoal -ljansson -lm

# What the application benchmarks run that is not a program of others.
$(B)/bench/apps/%: $(B)/obj/bench/apps/%.o
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ -lhiredis -ljansson -lm

# Unit tests link the objects of the room they test, without its main().
$(B)/tests/unit/%: $(B)/obj/tests/unit/%.o $(call obj,$(LIBCOAL_SRC)) $(call obj,$(filter-out memserver/main.c,$(MEMSERVER_SRC)))
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ -lcmocka -lcrypto -lxxhash -lmicrohttpd -lm

$(B)/tests/api/%: $(B)/obj/tests/api/%.o $(B)/libcoal.so
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/../..' -o $@ $(filter %.o,$^) -L$(B) -lcoal -lcmocka

.PHONY: bench bench-quick
bench: deps-bench $(BINARIES) $(KERNELS)  ## measure ours, peers and floors: build/bench/results.json, SVGs (under 10 minutes)
	bench/run --build $(B)

bench-quick: deps-bench $(BINARIES) $(KERNELS)  ## the same in less than a minute, coarser
	bench/run --build $(B) --quick

$(STRESS): $(call obj,$(STRESS_SRC)) $(B)/libcoal.so
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/../..' -o $@ $(filter %.o,$^) -L$(B) -lcoal

# Programs that the tests run under `coal run`: plain ones, which know nothing of Coalesce.
$(B)/tests/apps/%: tests/apps/%.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 $(WARN) -O2 -g -pthread -D_GNU_SOURCE -MMD -MP -o $@ $<

$(B)/tests/apps/%: tests/apps/%.cpp
	$(call say,CXX,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) -std=c++17 -Wall -Wextra -O2 -g -pthread -MMD -MP -o $@ $<

PYTHON := /usr/bin/python3
SAN_ADDRESS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN_THREAD := -fsanitize=thread

.PHONY: tests check check-asan check-tsan check-vm demo
tests: $(UNIT) $(API) $(STRESS) $(APPS) $(KERNELS)  ## build the tests

check: deps  ## install what is missing, build, run all tests
	@$(MAKE) -j$(shell nproc) --no-print-directory all tests
	@COAL_BUILD=$(B) $(PYTHON) -m pytest -q </dev/null

check-vm: deps  ## the tests of test_vm.py: libcoal on Debian 12's Linux 6.1, in virtual machines (also a part of check)
	@$(MAKE) -j$(shell nproc) --no-print-directory all tests
	@COAL_BUILD=$(B) $(PYTHON) -m pytest -v tests/test_vm.py </dev/null

check-asan: deps  ## the tests that can, with address and undefined sanitizers
	@$(MAKE) -j$(shell nproc) --no-print-directory B=$(B)/asan SAN='$(SAN_ADDRESS)' $(B)/asan/memserver tests
	@COAL_BUILD=$(B)/asan COAL_SANITIZED=1 $(PYTHON) -m pytest -q </dev/null

# Without address randomisation: the runtime of gcc 12 finds no place for its shadow where the kernel uses 32 bits of it.
check-tsan: deps  ## the tests that can, with the thread sanitizer
	@$(MAKE) -j$(shell nproc) --no-print-directory B=$(B)/tsan SAN='$(SAN_THREAD)' $(B)/tsan/memserver tests
	@TSAN_OPTIONS='suppressions=$(CURDIR)/tests/tsan.supp log_path=$(B)/tsan/report' COAL_BUILD=$(B)/tsan COAL_SANITIZED=1 setarch -R $(PYTHON) -m pytest -q </dev/null

SECONDS ?= 120
.PHONY: check-stress
check-stress: deps  ## the stress test for SECONDS (120) on each path: UFFDIO_MOVE, and what is used without it
	@$(MAKE) -j$(shell nproc) --no-print-directory $(B)/memserver $(STRESS)
	$(STRESS) --path move --seconds $(SECONDS)
	$(STRESS) --path fallback --seconds $(SECONDS)

demo: deps  ## redis-server with three quarters of its data on another memory
	@$(MAKE) -j$(shell nproc) --no-print-directory all
	@COAL_BUILD=$(B) $(PYTHON) bench/demo.py

# Configured in .clang-tidy and .cppcheck-suppressions: each check that is off has its reason there.
LINT_SRC = $(LIBCOAL_SRC) $(MALLOC_SRC) $(COAL_SRC) $(MEMSERVER_SRC) $(PFLAT_SRC) $(UNIT_SRC) $(API_SRC) $(STRESS_SRC) $(wildcard tests/apps/*.c)
LINT_SRC = $(LIBCOAL_SRC) $(MALLOC_SRC) $(COAL_SRC) $(MEMSERVER_SRC) $(PFLAT_SRC) $(KERNEL_SRC) $(UNIT_SRC) $(API_SRC) $(wildcard tests/apps/*.c)
.PHONY: lint
lint: deps  ## clang-tidy and cppcheck over all C
	@printf '%s\n' $(LINT_SRC) | xargs -P 2 -I FILE clang-tidy --quiet FILE -- -std=gnu11 -D_GNU_SOURCE \
		-DCOAL_VERSION='"$(VERSION)"' -Iinclude -Ipager 2>/dev/null
	@cppcheck --quiet --error-exitcode=1 --enable=warning,performance,portability --inline-suppr -j 2 --std=c11 \
		--suppressions-list=.cppcheck-suppressions -Iinclude -Ipager -D_GNU_SOURCE -D__x86_64__ -DCOAL_VERSION='"$(VERSION)"' $(LINT_SRC)
	@echo "lint: clean"

# The request parser and the sessions of the memserver, fed by libFuzzer.
FUZZ_SECONDS ?= 60
FUZZ_FLAGS    = -std=gnu11 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -pthread -D_GNU_SOURCE -Iinclude
$(B)/fuzz/fuzz_request: tests/fuzz/fuzz_request.c $(filter-out memserver/main.c,$(MEMSERVER_SRC)) $(wildcard memserver/*.h include/coal/*.h)
	$(call say,FUZZ,$@)
	@mkdir -p $(@D)
	$(Q)clang $(FUZZ_FLAGS) -o $@ $(filter %.c,$^) -lcrypto -lmicrohttpd -lm

.PHONY: check-fuzz
check-fuzz: $(B)/fuzz/fuzz_request  ## fuzz the memserver's request parser for FUZZ_SECONDS (60)
	$(Q)python3 tests/fuzz/make_seeds.py $(B)/fuzz/seeds
	$(Q)mkdir -p $(B)/fuzz/corpus
	$(B)/fuzz/fuzz_request -max_total_time=$(FUZZ_SECONDS) -max_len=100000 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
		-artifact_prefix=$(B)/fuzz/ $(B)/fuzz/corpus $(B)/fuzz/seeds

.PHONY: help deps deps-bench clean
help:  ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# $(call install_missing,PACKAGES): those that are missing.
install_missing = missing=$$(for p in $(1); do \
		dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	test -z "$$missing" || { echo "installing: "$$missing; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }

deps:  ## install the Debian packages that are missing
	@$(call install_missing,$(DEPS_BUILD) $(DEPS_TEST) $(DEPS_LINT))

deps-bench:  ## install what only make bench uses: gnuplot-nox, and the peers nbdkit, libnbd-bin (nbdfuse), fuse3
	@$(call install_missing,$(DEPS_BENCH)) || echo "not installed: the benchmark leaves out what needs them, and says so"

MAN     := $(wildcard pager/cmd/*.1 bench/*.1 pager/*.3 memserver/*.8)
UNITS   := $(wildcard memserver/*.service)
HEADERS := include/coal/coal.h
TO       = $(DESTDIR)$(PREFIX)

.PHONY: install uninstall
install: all  ## install below PREFIX (/usr/local); DESTDIR= is put before it
	$(call say,INSTALL,$(TO))
	$(Q)install -d $(TO)/bin $(TO)/sbin $(TO)/lib/pkgconfig $(TO)/include/coal $(TO)/lib/systemd/system
	$(Q)install -m 755 $(B)/coal $(B)/pflat $(TO)/bin
	$(Q)install -m 755 $(B)/memserver $(TO)/sbin
	$(Q)install -m 644 $(B)/libcoal-malloc.so $(TO)/lib
	$(Q)install -m 644 $(B)/libcoal.so $(TO)/lib/libcoal.so.$(VERSION)
	$(Q)ln -sf libcoal.so.$(VERSION) $(TO)/lib/libcoal.so.0
	$(Q)ln -sf libcoal.so.0 $(TO)/lib/libcoal.so
	$(Q)install -m 644 $(HEADERS) $(TO)/include/coal
	$(Q)sed -e 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' pager/coal.pc.in > $(TO)/lib/pkgconfig/coal.pc
	$(Q)for f in $(MAN); do install -D -m 644 $$f $(TO)/share/man/man$${f##*.}/$${f##*/}; done
	$(Q)for f in $(UNITS); do sed 's|/usr/local/|$(PREFIX)/|g' $$f > $(TO)/lib/systemd/system/$${f##*/}; done
	$(Q)test -n "$(DESTDIR)" -o ! -w /etc/ld.so.cache || ldconfig

uninstall:  ## remove what install put there
	$(call say,REMOVE,$(TO))
	$(Q)rm -f $(TO)/bin/coal $(TO)/bin/pflat $(TO)/sbin/memserver $(TO)/lib/libcoal-malloc.so $(TO)/lib/libcoal.so* \
		$(TO)/lib/pkgconfig/coal.pc $(patsubst include/%,$(TO)/include/%,$(HEADERS)) \
		$(foreach f,$(MAN),$(TO)/share/man/man$(patsubst .%,%,$(suffix $f))/$(notdir $f)) \
		$(patsubst memserver/%,$(TO)/lib/systemd/system/%,$(UNITS))
	$(Q)test ! -d $(TO)/include/coal || rmdir --ignore-fail-on-non-empty $(TO)/include/coal

clean:  ## remove build/
	rm -rf $(B)

-include $(shell find $(B) -path $(B)/vm -prune -o -name '*.d' -print 2>/dev/null)
