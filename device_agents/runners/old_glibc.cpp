// Lets a program that was linked on a new system start on an old one (glibc 2.17 on arm64, 2.2.5 on x86-64).
// Only for runners that are built for another machine; linked with -Wl,--wrap=__libc_start_main.

#if defined(__x86_64__)
#define FIRST_VERSION "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define FIRST_VERSION "GLIBC_2.17"
#elif defined(__arm__)
#define FIRST_VERSION "GLIBC_2.4"
#else
#error "the first glibc version of this architecture is not known here"
#endif

#define HIDDEN __attribute__((visibility("hidden")))

extern "C" {

using Main = int(int, char**, char**);
using Constructor = void (*)(int, char**, char**);

// glibc 2.34 gave the start of a program a new version, as it runs the constructors itself since then.
int first_start(Main*, int, char**, Main*, void (*)(), void (*)(), void*);
__asm__(".symver first_start, __libc_start_main@" FIRST_VERSION);

extern HIDDEN Constructor __init_array_start[], __init_array_end[];

static int run_constructors(int argc, char** argv, char** env) {
  for (Constructor* each = __init_array_start; each != __init_array_end; ++each) (*each)(argc, argv, env);
  return 0;
}

int __wrap___libc_start_main(Main* main, int argc, char** argv, Main* init, void (*fini)(), void (*at_exit)(),
                             void* stack_end) {
  return first_start(main, argc, argv, init != nullptr ? init : run_constructors, fini, at_exit, stack_end);
}

// Came with glibc 2.32; std::shared_ptr saves its atomic operations where it is not 0.
HIDDEN char __libc_single_threaded = 0;

}  // extern "C"
