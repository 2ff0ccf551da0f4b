#include "io/program.h"

#include "io/files.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

bool bk_program_found(const char *name)
{
    const char *path = getenv("PATH");
    char place[4096];
    while (path && *path) {
        int length = (int)strcspn(path, ":");
        snprintf(place, sizeof place, "%.*s/%s", length, path, name);
        if (access(place, X_OK) == 0 && !bk_is_directory(place))
            return true;
        path += length + (path[length] == ':');
    }
    return false;
}

static int start(const char *directory, const char *const *argv, const char *log, pid_t *child)
{
    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);
    if (error != 0)
        return error;
    error = posix_spawn_file_actions_addchdir_np(&actions, directory);
    if (error == 0)
        error = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (error == 0)
        error =
            posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (error == 0)
        error = posix_spawn_file_actions_adddup2(&actions, 1, 2);
    if (error == 0) /* its argv is not written to, whatever the type says */
        error = posix_spawnp(child, argv[0], &actions, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* The last line that is not empty. */
static const char *last_line(bk_arena *arena, const char *directory, const char *log)
{
    char *text, *last = NULL, *rest = NULL;
    size_t length;
    const char *path = bk_arena_printf(arena, "%s/%s", directory, log);
    if (bk_read_file(arena, path, &text, &length) != BK_OK)
        return "it wrote nothing";
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        last = line;
    return last ? last : "it wrote nothing";
}

bk_status bk_program_run(const char *directory, const char *const *argv, const char *log)
{
    pid_t child;
    int state = 0, error = start(directory, argv, log, &child);
    if (error != 0)
        return bk_fail(BK_FAULT, "the program cannot be started (%s): %s", argv[0],
                       strerror(error));
    while (waitpid(child, &state, 0) < 0)
        if (errno != EINTR)
            return bk_fail(BK_FAULT, "the program is lost (%s): %s", argv[0], strerror(errno));
    if (WIFEXITED(state) && WEXITSTATUS(state) == 0)
        return BK_OK;
    bk_arena *scratch = bk_arena_new("program");
    bk_status status = bk_fail(BK_FAULT, "the program %s with %d (%s): %.300s",
                               WIFEXITED(state) ? "ended" : "was killed",
                               WIFEXITED(state) ? WEXITSTATUS(state) : WTERMSIG(state), argv[0],
                               last_line(scratch, directory, log));
    bk_arena_free(scratch);
    return status;
}
