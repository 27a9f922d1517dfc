/* SPDX-License-Identifier: Apache-2.0 */
/*
 * new.c - the C++ operators new and delete, in C with their mangled names: a C program that is run with this library must
 * not load libstdc++. What only the C++ runtime can do - find the new_handler, throw - is looked up in the program when
 * memory has run out. Exceptions pass through these functions: the compiler emits unwind tables for them.
 */
#include "heap.h"
#include <dlfcn.h>
#include <stdlib.h>

#define RET __builtin_return_address(0)
#define MIN_ALIGN 16

typedef void (*handler_fn)(void);
typedef handler_fn (*get_handler_fn)(void);

/* operator new when the first attempt failed: what the standard asks for. */
static __attribute__((noinline)) void *new_or_throw(size_t alignment, size_t size, const void *ret)
{
	get_handler_fn get_handler = (get_handler_fn)dlsym(RTLD_DEFAULT, "_ZSt15get_new_handlerv");
	handler_fn throw_bad_alloc = (handler_fn)dlsym(RTLD_DEFAULT, "_ZSt17__throw_bad_allocv");
	handler_fn handler;

	while (get_handler && (handler = get_handler())) {
		handler();
		void *p = heap_aligned(alignment, size, ret);
		if (p)
			return p;
	}
	if (throw_bad_alloc)
		throw_bad_alloc();
	abort();
}

static void *new(size_t alignment, size_t size, const void *ret)
{
	void *p = alignment > MIN_ALIGN ? heap_aligned(alignment, size, ret) : heap_malloc(size, ret);

	return likely(p) ? p : new_or_throw(alignment, size, ret);
}

/* The C++ runtime's own version calls the throwing operator and catches, which C can't. */
static void *new_nothrow(const char *runtime, size_t size, const void *nothrow, const void *ret)
{
	void *p = heap_malloc(size, ret);

	if (likely(p))
		return p;
	void *(*slow)(size_t, const void *) = (void *(*)(size_t, const void *))dlsym(RTLD_NEXT, runtime);
	return slow ? slow(size, nothrow) : NULL;
}

static void *new_aligned_nothrow(const char *runtime, size_t size, size_t alignment, const void *nothrow, const void *ret)
{
	void *p = heap_aligned(alignment, size, ret);

	if (likely(p))
		return p;
	void *(*slow)(size_t, size_t, const void *) = (void *(*)(size_t, size_t, const void *))dlsym(RTLD_NEXT, runtime);
	return slow ? slow(size, alignment, nothrow) : NULL;
}

/* _Znw and _Zdl are operator new and delete, _Zna and _Zda those of arrays; _ZdlPv frees, _ZdlPvm knows the size too. */
#define OPERATORS(w, l)                                                                                        \
	EXPORT void *_Zn##w##m(size_t size);                                                                   \
	EXPORT void *_Zn##w##mRKSt9nothrow_t(size_t size, const void *nothrow);                                \
	EXPORT void *_Zn##w##mSt11align_val_t(size_t size, size_t align);                                      \
	EXPORT void *_Zn##w##mSt11align_val_tRKSt9nothrow_t(size_t size, size_t align, const void *nothrow);   \
	EXPORT void _Zd##l##Pv(void *p);                                                                       \
	EXPORT void _Zd##l##PvRKSt9nothrow_t(void *p, const void *nothrow);                                    \
	EXPORT void _Zd##l##Pvm(void *p, size_t size);                                                         \
	EXPORT void _Zd##l##PvSt11align_val_t(void *p, size_t align);                                          \
	EXPORT void _Zd##l##PvmSt11align_val_t(void *p, size_t size, size_t align);                            \
	EXPORT void _Zd##l##PvSt11align_val_tRKSt9nothrow_t(void *p, size_t align, const void *nothrow);       \
	void *_Zn##w##m(size_t size)                                                                           \
	{                                                                                                      \
		return new(MIN_ALIGN, size, RET);                                                              \
	}                                                                                                      \
	void *_Zn##w##mRKSt9nothrow_t(size_t size, const void *nothrow)                                        \
	{                                                                                                      \
		return new_nothrow("_Zn" #w "mRKSt9nothrow_t", size, nothrow, RET);                            \
	}                                                                                                      \
	void *_Zn##w##mSt11align_val_t(size_t size, size_t align)                                              \
	{                                                                                                      \
		return new(align, size, RET);                                                                  \
	}                                                                                                      \
	void *_Zn##w##mSt11align_val_tRKSt9nothrow_t(size_t size, size_t align, const void *nothrow)           \
	{                                                                                                      \
		return new_aligned_nothrow("_Zn" #w "mSt11align_val_tRKSt9nothrow_t", size, align, nothrow, RET); \
	}                                                                                                      \
	void _Zd##l##Pv(void *p)                                                                               \
	{                                                                                                      \
		heap_free(p);                                                                                  \
	}                                                                                                      \
	void _Zd##l##PvRKSt9nothrow_t(void *p, const void *nothrow)                                            \
	{                                                                                                      \
		(void)nothrow;                                                                                 \
		heap_free(p);                                                                                  \
	}                                                                                                      \
	void _Zd##l##Pvm(void *p, size_t size)                                                                 \
	{                                                                                                      \
		(void)size;                                                                                    \
		heap_free(p);                                                                                  \
	}                                                                                                      \
	void _Zd##l##PvSt11align_val_t(void *p, size_t align)                                                  \
	{                                                                                                      \
		(void)align;                                                                                   \
		heap_free(p);                                                                                  \
	}                                                                                                      \
	void _Zd##l##PvmSt11align_val_t(void *p, size_t size, size_t align)                                    \
	{                                                                                                      \
		(void)size, (void)align;                                                                       \
		heap_free(p);                                                                                  \
	}                                                                                                      \
	void _Zd##l##PvSt11align_val_tRKSt9nothrow_t(void *p, size_t align, const void *nothrow)               \
	{                                                                                                      \
		(void)align, (void)nothrow;                                                                    \
		heap_free(p);                                                                                  \
	}

OPERATORS(w, l)
OPERATORS(a, a)
