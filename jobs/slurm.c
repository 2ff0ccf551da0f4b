#include "jobs/slurm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *variable(const char *name)
{
    const char *text = getenv(name);
    return text ? text : "";
}

/* The word behind `mark` in the output of a command; "" when there is none. */
static void ask(const char *command, const char *mark, char out[BK_SLURM_TEXT])
{
    char line[4096];
    out[0] = '\0';
    FILE *answer = popen(command, "r");
    if (!answer)
        return;
    while (fgets(line, sizeof line, answer)) {
        const char *at = strstr(line, mark);
        if (!at || out[0])
            continue;
        at += strlen(mark);
        snprintf(out, BK_SLURM_TEXT, "%.*s", (int)strcspn(at, " \t\n\"'"), at);
    }
    pclose(answer);
}

/* Job numbers go into commands, so they are digits and nothing else. */
static bool plain_number(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    return digits > 0 && text[digits] == '\0';
}

void bk_slurm_read(bk_slurm *out)
{
    char command[256];
    const char *job = variable("SLURM_JOB_ID");
    *out = (bk_slurm){.inside = plain_number(job)};
    if (!out->inside)
        return;
    snprintf(out->job, sizeof out->job, "%s", job);
    snprintf(out->nodes, sizeof out->nodes, "%s", variable("SLURM_JOB_NODELIST"));
    out->restarts = atoi(variable("SLURM_RESTART_COUNT"));
    snprintf(command, sizeof command, "squeue -h -j %s -o %%L 2>/dev/null", job);
    ask(command, "", out->left);
    snprintf(command, sizeof command, "scontrol -o show job %s 2>/dev/null", job);
    ask(command, "Requeue=", out->requeue);
    snprintf(command, sizeof command, "scontrol write batch_script %s - 2>/dev/null", job);
    ask(command, "--signal=", out->signal);
}

bool bk_slurm_tasks_alone(int ranks)
{
    return ranks == 1 && atoi(variable("SLURM_STEP_NUM_TASKS")) > 1;
}
