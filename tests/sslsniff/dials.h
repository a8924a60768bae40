/* SPDX-License-Identifier: BSD-2-Clause */
/* What programs have in common that connect to two ports, PORT and OTHER_PORT, once they have said a line and been told
 * to go on by one.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int dialled(const char *port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *)&at, sizeof(at)))
		exit(2);
	return fd;
}

static void wait_for_line(void)
{
	char line[8];

	puts("here");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(4);
}
