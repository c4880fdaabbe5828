// LD_PRELOAD: write every address outside this machine's files to the file named by SILENCE_LOG.
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

static void note(const char* call, const sockaddr* address) {
  if (address && (address->sa_family == AF_UNIX || address->sa_family == AF_NETLINK || address->sa_family == AF_UNSPEC))
    return;
  char text[128];
  const int length = std::snprintf(text, sizeof text, "%s family=%d\n", call, address ? address->sa_family : -1);
  const int file = open(std::getenv("SILENCE_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0600);
  if (file < 0 || write(file, text, static_cast<size_t>(length)) != length) std::abort();
  close(file);
}

template <class Function>
static Function real(const char* name, Function) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

extern "C" {
int connect(int socket, const sockaddr* address, socklen_t length) {
  note("connect", address);
  return real("connect", connect)(socket, address, length);
}
ssize_t sendto(int socket, const void* data, size_t size, int flags, const sockaddr* address, socklen_t length) {
  if (address) note("sendto", address);
  return real("sendto", sendto)(socket, data, size, flags, address, length);
}
ssize_t sendmsg(int socket, const msghdr* message, int flags) {
  if (message->msg_name) note("sendmsg", static_cast<const sockaddr*>(message->msg_name));
  return real("sendmsg", sendmsg)(socket, message, flags);
}
int getaddrinfo(const char* node, const char* service, const addrinfo* hints, addrinfo** result) {
  note("getaddrinfo", nullptr);
  return real("getaddrinfo", getaddrinfo)(node, service, hints, result);
}
}
