/* SPDX-License-Identifier: BSD-2-Clause */
/* A program that leaves a call for a connection by a jump (longjmp), as some do when time is up, and goes on with another
 * one. It has functions of OpenSSL's names itself. Behind dials.h.
 *
 *   jumps PORT OTHER_PORT DEPTH    says a line, waits for one, and has the call that it leaves so many bytes further down
 *                                  its stack than the one that follows
 */
#include <alloca.h>
#include <setjmp.h>

static jmp_buf out;
/* Sockets of the two connections, which stand for them. */
static int one, other;

static int sends_hello(int fd)
{
	static const unsigned char hello[64] = { 22, 3, 1, 0, 59, 1 };

	return write(fd, hello, sizeof(hello)) == sizeof(hello);
}

__attribute__((noinline)) int SSL_do_handshake(int *ssl)
{
	if (!sends_hello(*ssl))
		exit(1);
	if (ssl == &one)
		longjmp(out, 1);
	return 1;
}

__attribute__((noinline)) int SSL_write(int *ssl, const void *bytes, int length)
{
	return write(*ssl, bytes, length);
}

__attribute__((noinline)) static int deep(int *ssl, int depth)
{
	volatile char *below = alloca(depth);

	below[0] = 1;
	return SSL_do_handshake(ssl) + below[0];
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 3;
	wait_for_line();
	one = dialled(argv[1]);
	other = dialled(argv[2]);
	if (!setjmp(out))
		deep(&one, atoi(argv[3]));
	if (SSL_do_handshake(&other) != 1)
		return 5;
	/* As a record of data begins. */
	return SSL_write(&other, "\x17\x03\x03\x00\x05other", 10) != 10;
}
