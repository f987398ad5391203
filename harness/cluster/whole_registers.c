/*
 * Lets user-mode-linux of before Linux 6.13 run on processors with AMX.
 *
 * It sets the registers of its processes by a buffer that holds what there was before AMX. Since Linux 5.16 the host
 * takes no less than all of them ("ptrace set fp regs failed, errno = 14"). So what the kernel gives is laid over what
 * the process has, and all of it is set. No process of the kernel has registers of AMX: nobody asks for them.
 *
 * Preloaded (ld.so(8)) into the kernel's process, which has one thread.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...)
{
	static long (*systems_own)(enum __ptrace_request, ...);
	static char registers[1 << 16];
	va_list rest;

	va_start(rest, request);
	pid_t pid = va_arg(rest, pid_t);
	void *address = va_arg(rest, void *), *data = va_arg(rest, void *);
	va_end(rest);
	if (!systems_own)
		systems_own = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
		struct iovec *part = data, whole = { registers, sizeof(registers) };

		if (systems_own(PTRACE_GETREGSET, pid, address, &whole) == 0 && whole.iov_len > part->iov_len) {
			memcpy(registers, part->iov_base, part->iov_len);
			return systems_own(request, pid, address, &whole);
		}
	}
	return systems_own(request, pid, address, data);
}
