/* Lower bound for the cost of a container: namespaces, a new root with /proc, and the program. RUN
 * steps are compared with it.
 *   floor ROOTFS PROGRAM [ARG...]
 * Prints nothing; exits with the program's exit code. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(125);
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) die(path);
    close(fd);
}

int main(int argc, char **argv) {
    char map[64];
    unsigned uid = getuid(), gid = getgid();
    if (argc < 3) return 125;
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)) die("unshare");
    put("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", uid);
    put("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %u 1", gid);
    put("/proc/self/gid_map", map);
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) die("private");
        if (mount(argv[1], argv[1], NULL, MS_BIND | MS_REC, NULL)) die("bind");
        if (chdir(argv[1])) die("chdir");
        if (mount("proc", "proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL)) die("proc");
        if (mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755")) die("dev");
        if (syscall(SYS_pivot_root, ".", ".")) die("pivot_root");
        if (umount2(".", MNT_DETACH)) die("umount2");
        if (chdir("/")) die("chdir");
        execv(argv[2], argv + 2);
        die("execv");
    }
    int status;
    if (waitpid(child, &status, 0) < 0) die("waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 126;
}
