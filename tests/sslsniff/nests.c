/* SPDX-License-Identifier: BSD-2-Clause */
/* A program that has more calls under way within each other than are kept, and goes on with another connection. It has
 * functions of OpenSSL's names itself. Behind dials.h.
 *
 *   nests PORT OTHER_PORT    says a line, waits for one, and writes through all its layers, then to the other port
 */
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

int main(int argc, char **argv)
{
	size_t written;

	if (argc != 3)
		return 3;
	wait_for_line();
	layers[LAYERS - 1] = dialled(argv[1]);
	other = dialled(argv[2]);
	/* As records of data begin. */
	if (SSL_write(layers, "\x17\x03\x03\x00\x05first", 10) != 10)
		return 5;
	return !SSL_write_ex(&other, "\x17\x03\x03\x00\x05other", 10, &written);
}
