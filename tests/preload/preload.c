/* Loaded before the C library (LD_PRELOAD): a wall clock that jumps by days at every look (JUMPING_CLOCK), and a disk that takes SLOW_SYNC_MS
   milliseconds to sync. Each time it acts it adds a byte to the file ACTED, so that a test can tell. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void acted(void) {
    const char *path = getenv("ACTED");
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
    if (file >= 0) {
        if (write(file, ".", 1) < 0) { /* Then there is no byte, and the test fails. */ }
        close(file);
    }
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static atomic_uint looks;
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME && getenv("JUMPING_CLOCK")) {
        unsigned look = atomic_fetch_add(&looks, 1);
        time->tv_sec += (look % 2 ? 1 : -1) * 86400L * (1 + look % 400);
        acted();
    }
    return result;
}

static void wait_for_the_disk(void) {
    const char *milliseconds = getenv("SLOW_SYNC_MS");
    if (milliseconds) {
        usleep(1000 * (useconds_t)atoi(milliseconds));
        acted();
    }
}

int fsync(int file) {
    wait_for_the_disk();
    return (int)syscall(SYS_fsync, file);
}

int fdatasync(int file) {
    wait_for_the_disk();
    return (int)syscall(SYS_fdatasync, file);
}
