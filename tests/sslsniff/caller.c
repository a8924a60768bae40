/* SPDX-License-Identifier: BSD-2-Clause */
/* A client whose functions are to be seen in stacks: caller PORT waits for a line, says hello,
 * and waits for another.
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* From where OpenSSL is, so that building this takes none of its headers. */
static void *call(const char *name)
{
	static void *library;

	if (!library)
		library = dlopen("libssl.so.3", RTLD_NOW);
	if (!library || !dlsym(library, name))
		exit(1);
	return dlsym(library, name);
}

__attribute__((noinline)) int say_hello(void *tls)
{
	int (*write)(void *, const void *, int) = call("SSL_write");
	int written = write(tls, "hello", 5);

	/* Not a tail call: then this would not be in the stack. */
	return written == 5 ? 0 : 1;
}

__attribute__((noinline)) int talk(void *tls)
{
	int failed = say_hello(tls);

	return failed ? failed + 1 : 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	void *context, *tls;
	char line[8];

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	to.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
	/* Mapped before anybody looks. */
	context = ((void *(*)(void *))call("SSL_CTX_new"))(
		((void *(*)(void))call("TLS_client_method"))());
	tls = ((void *(*)(void *))call("SSL_new"))(context);
	if (!fgets(line, sizeof(line), stdin) || connect(fd, (void *)&to, sizeof(to)))
		return 1;
	((int (*)(void *, int))call("SSL_set_fd"))(tls, fd);
	if (((int (*)(void *))call("SSL_connect"))(tls) != 1)
		return 1;
	if (talk(tls) || !fgets(line, sizeof(line), stdin))
		return 1;
	((int (*)(void *))call("SSL_shutdown"))(tls);
	((void (*)(void *))call("SSL_free"))(tls);
	return 0;
}
