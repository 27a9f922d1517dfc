# SPDX-License-Identifier: Apache-2.0
# Coalesce. `make help` lists the targets; V=1 shows whole commands.
.DELETE_ON_ERROR:
.SUFFIXES:
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
	libmicrohttpd-dev \
	libjemalloc-dev \
	libjansson-dev
DEPS_TEST := libcmocka-dev python3-pytest python3-pytest-timeout redis-server redis-tools python3-redis sqlite3 \
	xz-utils git curl iproute2 man-db binutils procps python3
DEPS_BENCH := gnuplot-nox
DEPS_LINT := clang clang-tidy cppcheck libclang-rt-14-dev

Q = $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(patsubst $(B)/%,%,$(2))')

LIBCOAL_SRC   := $(wildcard pager/*.c)
MALLOC_SRC    := $(wildcard pager/malloc/*.c)
COAL_SRC      := $(wildcard pager/cmd/*.c)
MEMSERVER_SRC := $(wildcard memserver/*.c)
PFLAT_SRC     := $(wildcard bench/pflat*.c)
UNIT_SRC      := $(wildcard tests/unit/*.c)
API_SRC       := $(wildcard tests/api/*.c)
obj = $(patsubst %.c,$(B)/obj/%.o,$(1))

BINARIES := $(B)/coal $(B)/memserver $(B)/libcoal.so $(B)/libcoal-malloc.so $(B)/pflat
UNIT     := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(UNIT_SRC))
API      := $(patsubst tests/api/%.c,$(B)/tests/api/%,$(API_SRC))

.PHONY: all
all: $(BINARIES)  ## build everything into build/

$(B)/obj/%.o: %.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(CFLAGS_$(firstword $(subst /, ,$*))) -c -o $@ $<

$(B)/libcoal.so: $(call obj,$(LIBCOAL_SRC)) pager/libcoal.map
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -shared -Wl,-soname,libcoal.so.0 -Wl,--version-script=pager/libcoal.map -o $@ $(filter %.o,$^) -lcrypto
	$(Q)ln -sf libcoal.so $(B)/libcoal.so.0

JEMALLOC_PIC = $(shell $(CC) -print-file-name=libjemalloc_pic.a)
$(B)/libcoal-malloc.so: $(call obj,$(MALLOC_SRC)) pager/malloc/malloc.map $(B)/libcoal.so
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -shared -Wl,--version-script=pager/malloc/malloc.map -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' \
		-o $@ $(filter %.o,$^) $(JEMALLOC_PIC) -L$(B) -lcoal -ldl -lm

$(B)/coal: $(call obj,$(COAL_SRC)) $(B)/libcoal.so
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' -o $@ $(filter %.o,$^) -L$(B) -lcoal -ljansson -lm

$(B)/memserver: $(call obj,$(MEMSERVER_SRC))
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $(filter %.o,$^) -lcrypto -lmicrohttpd -lm

$(B)/pflat: $(call obj,$(PFLAT_SRC)) $(B)/libcoal.so
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' -o $@ $(filter %.o,$^) -L$(B) -lcoal -ljansson -lm

# Unit tests link the objects of the room they test, without its main().
$(B)/tests/unit/%: $(B)/obj/tests/unit/%.o $(call obj,$(LIBCOAL_SRC)) $(call obj,$(filter-out memserver/main.c,$(MEMSERVER_SRC)))
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ -lcmocka -lcrypto -lmicrohttpd -lm

$(B)/tests/api/%: $(B)/obj/tests/api/%.o $(B)/libcoal.so
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/../..' -o $@ $(filter %.o,$^) -L$(B) -lcoal -lcmocka

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

.PHONY: help deps clean
help:  ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps:  ## install the Debian packages that are missing
	@missing=$$(for p in $(DEPS_BUILD) $(DEPS_TEST) $(DEPS_BENCH) $(DEPS_LINT); do \
		dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	test -z "$$missing" || { echo "installing: "$$missing; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }

clean:  ## remove build/
	rm -rf $(B)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
