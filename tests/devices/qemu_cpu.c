/* Runs the qemu-user that is appended to this program, on the processor CPU unless QEMU_CPU says another one.
 * A device's supervisor gives agents an empty environment, and qemu's default ("max") computes some int8
 * kernels wrongly. As binfmt_misc interpreter with the flag F it works in every root that has a /proc. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
  struct stat about;
  uint64_t begin;
  int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  if (argc < 2 || self < 0 || fstat(self, &about) || pread(self, &begin, 8, about.st_size - 8) != 8) {
    perror("qemu_cpu: /proc/self/exe");
    return 126;
  }
  int qemu = memfd_create("qemu", MFD_CLOEXEC);
  off_t at = (off_t)begin;
  while (at < about.st_size - 8)
    if (sendfile(qemu, self, &at, (size_t)(about.st_size - 8 - at)) <= 0) {
      perror("qemu_cpu: sendfile");
      return 126;
    }
  setenv("QEMU_CPU", CPU, 0);
  argv[0] = NAME; /* Debian's qemu keeps the program's own argv[0] when it is called so */
  fexecve(qemu, argv, environ);
  perror("qemu_cpu: fexecve");
  return 126;
}
