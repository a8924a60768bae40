/* SPDX-License-Identifier: BSD-2-Clause */
/* A program that has more calls under way within each other than are kept, and goes on with another connection. It has
 * functions of OpenSSL's names itself.
 *
 *   nests PORT OTHER_PORT    says a line, waits for one, and writes through all its layers, then to the other port
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define LAYERS 12

/* Connections, each but the last within the next one, and the other one: sockets, of which the last ones are used. */
static int layers[LAYERS], other;

__attribute__((noinline)) int SSL_write(int *ssl, const void *bytes, int length)
{
	volatile int written;

	if (ssl != &other && ssl != &layers[LAYERS - 1])
		written = SSL_write(ssl + 1, bytes, length);
	else
		written = write(*ssl, bytes, length);
	return written;
}

__attribute__((noinline)) int SSL_write_ex(int *ssl, const void *bytes, size_t length, size_t *written)
{
	*written = SSL_write(ssl, bytes, length);
	return *written == length;
}

static int dialled(const char *port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *)&at, sizeof(at)))
		exit(2);
	return fd;
}

int main(int argc, char **argv)
{
	size_t written;
	char line[8];

	if (argc != 3)
		return 3;
	puts("here");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 4;
	layers[LAYERS - 1] = dialled(argv[1]);
	other = dialled(argv[2]);
	/* As records of data begin. */
	if (SSL_write(layers, "\x17\x03\x03\x00\x05first", 10) != 10)
		return 5;
	return !SSL_write_ex(&other, "\x17\x03\x03\x00\x05other", 10, &written);
}
