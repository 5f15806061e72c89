/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * System calls that only touch their arguments in memory.
 *
 * libc's syscall() stores errno in the calling thread's storage.  A process that shares another
 * process' memory has no such storage: it would write into that of a thread that may have ended.
 */
#ifndef PHD_RAWCALL_H
#define PHD_RAWCALL_H

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * For code in such a process: the compiler must not add code that uses a thread's storage, such as
 * the stack protector, or tables of the process.
 */
#if __has_attribute(no_stack_protector)
#define PHD_BARE __attribute__((no_sanitize("address", "undefined"), no_stack_protector))
#else /* gcc before 11 */
#define PHD_BARE                                                                                   \
	__attribute__((no_sanitize("address", "undefined"), optimize("no-stack-protector")))
#endif

#if defined(__x86_64__) && defined(__LP64__) && !defined(PHD_NO_RAWCALL)

#define PHD_HAVE_RAWCALL 1

/* The result of the call, or -errno. */
static inline PHD_BARE long phd_rawcall(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return ret;
}

#elif defined(__aarch64__) && defined(__LP64__) && !defined(PHD_NO_RAWCALL)

#define PHD_HAVE_RAWCALL 1

static inline PHD_BARE long phd_rawcall(long number, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;

	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory", "cc");
	return x0;
}

#else

#define PHD_HAVE_RAWCALL 0

static inline PHD_BARE long phd_rawcall(long number, long a, long b, long c, long d)
{
	long ret = syscall(number, a, b, c, d);

	return ret < 0 ? -errno : ret;
}

#endif

#endif
