/* SPDX-License-Identifier: BSD-2-Clause */
/* A program that has functions of OpenSSL's names itself: for those that a library makes use of only where the kernel has
 * TLS, or that only newer ones have, and for more calls at once than are followed.
 *
 *   namesakes            says a line and waits for one, then calls one after the other
 *   namesakes THREADS    the same, but has so many threads within SSL_read when it calls SSL_write
 *   namesakes 0          the same, but SSL_write is said to have written far more than there is to read
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

/* As a library does; and else the compiler drops a call of what has no effect. */
#define READ(buffer) (void)*(const volatile char *)(buffer)

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static atomic_int waiting;
static int tls;

__attribute__((noinline)) int SSL_read(void *ssl, void *buffer, int wanted)
{
	(void)ssl;
	(void)wanted;
	*(char *)buffer = 'r';
	waiting++;
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	return 1;
}

__attribute__((noinline)) int SSL_write(void *ssl, const void *buffer, int length)
{
	(void)ssl;
	READ(buffer);
	return length;
}

__attribute__((noinline)) int SSL_write_ex2(void *ssl, const void *buffer, size_t length, uint64_t flags, size_t *written)
{
	(void)ssl;
	READ(buffer);
	/* Fails for what nobody has defined. */
	if (flags > 1)
		return 0;
	*written = length;
	return 1;
}

__attribute__((noinline)) ssize_t SSL_sendfile(void *ssl, int fd, off_t offset, size_t length, int flags)
{
	READ(ssl);
	(void)offset;
	(void)flags;
	return fd < 0 ? -1 : (ssize_t)length;
}

static void *reads(void *unused)
{
	char byte;

	(void)unused;
	SSL_read(&tls, &byte, 1);
	return NULL;
}

static int with_threads(int count)
{
	pthread_t *threads = calloc(count, sizeof(*threads));
	pthread_attr_t attributes;
	int i;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 << 10);
	pthread_mutex_lock(&gate);
	for (i = 0; i < count; i++)
		if (pthread_create(&threads[i], &attributes, reads, NULL))
			return 1;
	while (waiting < count)
		usleep(1000);
	SSL_write(&tls, "unseen", 6);
	pthread_mutex_unlock(&gate);
	for (i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	return 0;
}

int main(int argc, char **argv)
{
	size_t written;
	char line[8];

	puts("here");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	if (argc > 1 && !atoi(argv[1])) {
		char *pages = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		/* The first of them alone can be read. */
		if (mprotect(pages, 1, PROT_READ | PROT_WRITE))
			return 1;
		return SSL_write(&tls, pages, INT32_MAX) != INT32_MAX;
	}
	if (argc > 1)
		return with_threads(atoi(argv[1]));
	SSL_write(&tls, "first", 5);
	SSL_write_ex2(&tls, "second", 6, 1, &written);
	SSL_write_ex2(&tls, "refused", 7, 2, &written);
	SSL_sendfile(&tls, 0, 0, 1000, 0);
	SSL_sendfile(&tls, -1, 0, 1000, 0);
	SSL_write(&tls, "last", 4);
	return 0;
}
