/*
 * Makes a system fault that no kernel makes on demand: the wall clock steps, and files cannot be written.
 *
 * It is preloaded (ld.so(8)) into all processes of a run. They map the file "orders" in FOLDER, and do as it says from
 * the moment that it does: see Orders in preloaded.py. The wall clock is that of clock_gettime(2), of time(2), and of
 * the stamps that the kernel puts on datagrams (socket(7), SO_TIMESTAMPNS). Files are those in FOLDER. Times of files
 * are the kernel's own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct orders {
	int64_t step_s;
	int64_t write_errno;
};

static const struct orders none;
static const volatile struct orders *orders = &none;

__attribute__((constructor)) static void map_orders(void)
{
	int file = open(FOLDER "/orders", O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return;
	void *mapped = mmap(NULL, sizeof(struct orders), PROT_READ, MAP_SHARED, file, 0);
	if (mapped != MAP_FAILED)
		orders = mapped;
	close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int failed = (int)syscall(SYS_clock_gettime, clock, now);
	if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += orders->step_s;
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;
	(void)zone;
	int failed = clock_gettime(CLOCK_REALTIME, &precise);
	*now = (struct timeval){precise.tv_sec, precise.tv_nsec / 1000};
	return failed;
}

time_t time(time_t *now)
{
	struct timespec precise;
	clock_gettime(CLOCK_REALTIME, &precise);
	if (now)
		*now = precise.tv_sec;
	return precise.tv_sec;
}

ssize_t recvmsg(int endpoint, struct msghdr *message, int flags)
{
	ssize_t size = syscall(SYS_recvmsg, endpoint, message, flags);
	if (size < 0)
		return size;
	for (struct cmsghdr *each = CMSG_FIRSTHDR(message); each; each = CMSG_NXTHDR(message, each)) {
		if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_TIMESTAMPNS)
			continue;
		struct timespec stamp;
		memcpy(&stamp, CMSG_DATA(each), sizeof stamp);
		stamp.tv_sec += orders->step_s;
		memcpy(CMSG_DATA(each), &stamp, sizeof stamp);
	}
	return size;
}

static int is_refused(int file)
{
	char link[64], path[PATH_MAX];
	if (!orders->write_errno)
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	ssize_t length = readlink(link, path, sizeof path);
	if (length < (ssize_t)sizeof FOLDER || strncmp(path, FOLDER "/", sizeof FOLDER))
		return 0;
	errno = (int)orders->write_errno;
	return 1;
}

ssize_t write(int file, const void *data, size_t size)
{
	return is_refused(file) ? -1 : syscall(SYS_write, file, data, size);
}

int fsync(int file)
{
	return is_refused(file) ? -1 : (int)syscall(SYS_fsync, file);
}
