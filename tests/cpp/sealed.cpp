// A library that seals the process that loads it: from then on the kernel ends it (SIGSYS) at
// whatever a reader of checkpoints has no business to do: running a program, starting a process,
// opening a socket, opening a file for writing or changing names, making memory executable.
//
//   LD_PRELOAD=libsealed.so PERDURE_SEAL=1 program      sealed when all libraries are mapped,
//   before
//                                                       main(); 98: this kernel has no such filters
//   ctypes.CDLL("libsealed.so").perdure_seal()          from here on, all threads; not 0: none
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <vector>

namespace {

#if defined(__x86_64__)
constexpr unsigned kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr unsigned kArchitecture = AUDIT_ARCH_AARCH64;
#else
#error "perdure runs on x86-64 and aarch64"
#endif

constexpr unsigned kForbidden[] = {
#if defined(__x86_64__)
    SYS_fork,           SYS_vfork,
    SYS_creat,          SYS_rename,
    SYS_unlink,         SYS_rmdir,
    SYS_mkdir,          SYS_link,
    SYS_symlink,        SYS_mknod,
    SYS_chmod,          SYS_chown,
#endif
    SYS_execve,         SYS_execveat,
    SYS_socket,         SYS_connect,
    SYS_bind,           SYS_socketpair,
    SYS_openat2,        SYS_renameat2,
    SYS_unlinkat,       SYS_mkdirat,
    SYS_linkat,         SYS_symlinkat,
    SYS_mknodat,        SYS_renameat,
    SYS_fchmod,         SYS_fchmodat,
    SYS_fchown,         SYS_fchownat,
    SYS_truncate,       SYS_ftruncate,
    SYS_fallocate,      SYS_setxattr,
    SYS_fsetxattr,      SYS_memfd_create,
    SYS_ptrace,         SYS_process_vm_writev,
    SYS_io_uring_setup, SYS_kill,
};

class Filter {
 public:
  Filter() {
    load(offsetof(seccomp_data, arch));
    add(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0));
    end(SECCOMP_RET_KILL_PROCESS);
  }
  void forbid(unsigned call, unsigned action = SECCOMP_RET_KILL_PROCESS) {
    load(offsetof(seccomp_data, nr));
    add(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1));
    end(action);
  }
  // Where an argument has one of these bits; or, `unless`, where it has none.
  void forbid_bits(unsigned call, unsigned argument, unsigned bits, bool unless = false) {
    load(offsetof(seccomp_data, nr));
    add(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 3));
    load(static_cast<unsigned>(offsetof(seccomp_data, args) + 8 * argument));  // its low half
    add(unless ? sock_filter(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 1, 0))
               : sock_filter(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1)));
    end(SECCOMP_RET_KILL_PROCESS);
  }
  bool install() {
    end(SECCOMP_RET_ALLOW);
    const sock_fprog program{static_cast<unsigned short>(program_.size()), program_.data()};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ==
               0;
  }

 private:
  void add(sock_filter instruction) { program_.push_back(instruction); }
  void load(std::size_t offset) {
    add(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<unsigned>(offset)));
  }
  void end(unsigned action) { add(BPF_STMT(BPF_RET | BPF_K, action)); }

  std::vector<sock_filter> program_;
};

}  // namespace

extern "C" int perdure_seal() {
  constexpr unsigned kWriting = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC;
  Filter filter;
  for (const unsigned call : kForbidden) filter.forbid(call);
  filter.forbid_bits(SYS_openat, 2, kWriting);
  filter.forbid_bits(SYS_mmap, 2, PROT_EXEC);
  filter.forbid_bits(SYS_mprotect, 2, PROT_EXEC);
  filter.forbid_bits(SYS_pkey_mprotect, 2, PROT_EXEC);
  filter.forbid_bits(SYS_clone, 0, CLONE_THREAD, true);
  // Its flags are out of a filter's sight; the C library takes clone instead.
  filter.forbid(SYS_clone3, SECCOMP_RET_ERRNO | ENOSYS);
#if defined(__x86_64__)
  filter.forbid_bits(SYS_open, 1, kWriting);
#endif
  return filter.install() ? 0 : -1;
}

namespace {

[[gnu::constructor]] void seal_where_asked() {
  if (std::getenv("PERDURE_SEAL") != nullptr && perdure_seal() != 0) ::_exit(98);
}

}  // namespace
