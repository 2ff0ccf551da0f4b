#include "jobs/slurm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *variable(const char *name)
{
    const char *text = getenv(name);
    return text ? text : "";
}

/* The word behind `mark` in the first line of a command's output that begins with `begin` and has
 * one; "" when there is none, or no answer in time. */
static void ask(const char *command, const char *begin, const char *mark, char out[BK_SLURM_TEXT])
{
    char line[4096], bounded[256];
    out[0] = '\0';
    snprintf(bounded, sizeof bounded, "timeout 10 %s 2>/dev/null", command);
    FILE *answer = popen(bounded, "r");
    if (!answer)
        return;
    while (fgets(line, sizeof line, answer)) {
        const char *at = strstr(line, mark);
        if (!at || out[0] || strncmp(line, begin, strlen(begin)) != 0)
            continue;
        at += strlen(mark);
        at += strspn(at, "= \t\"'");
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

/* The job by the name that means it alone: one task of an array has the number of the whole array.
 * False outside a job. */
static bool find_job(char out[BK_SLURM_TEXT])
{
    const char *job = variable("SLURM_JOB_ID"), *array = variable("SLURM_ARRAY_JOB_ID"),
               *task = variable("SLURM_ARRAY_TASK_ID");
    if (!plain_number(job))
        return false;
    if (plain_number(array) && plain_number(task))
        snprintf(out, BK_SLURM_TEXT, "%s_%s", array, task);
    else
        snprintf(out, BK_SLURM_TEXT, "%s", job);
    return true;
}

/* The number that *text begins with, which is moved behind it; -1 when there is none. */
static double take_number(const char **text)
{
    size_t digits = strspn(*text, "0123456789");
    double value = digits > 0 && digits < 10 ? strtod(*text, NULL) : -1;
    *text += digits;
    return value;
}

double bk_slurm_seconds(const char *text)
{
    double days = 0, seconds = 0;
    int fields = 1;
    if (strcmp(text, "UNLIMITED") == 0)
        return INFINITY;
    if (strchr(text, '-')) {
        days = take_number(&text);
        if (days < 0 || *text++ != '-')
            return -1;
    }
    for (;; fields++) {
        double field = take_number(&text);
        if (field < 0 || fields > 3)
            return -1;
        seconds = 60 * seconds + field;
        if (*text != ':')
            return *text == '\0' && fields >= 2 ? 86400 * days + seconds : -1;
        text++;
    }
}

double bk_slurm_time_left(void)
{
    char job[BK_SLURM_TEXT], command[160], text[BK_SLURM_TEXT];
    double left = strtod(variable("SLURM_JOB_END_TIME"), NULL) - (double)time(NULL);
    if (!find_job(job))
        return INFINITY;
    if (left > 0)
        return left;
    snprintf(command, sizeof command, "squeue -h -j %s -o %%L", job);
    ask(command, "", "", text);
    return bk_slurm_seconds(text);
}

void bk_slurm_read(bk_slurm *out)
{
    char command[160];
    *out = (bk_slurm){0};
    out->inside = find_job(out->job);
    if (!out->inside)
        return;
    snprintf(out->nodes, sizeof out->nodes, "%s", variable("SLURM_JOB_NODELIST"));
    out->restarts = atoi(variable("SLURM_RESTART_COUNT"));
    out->left = bk_slurm_time_left();
    snprintf(command, sizeof command, "scontrol -o show job %s", out->job);
    ask(command, "", " BatchFlag", out->batch);
    ask(command, "", " Requeue", out->requeue);
    snprintf(command, sizeof command, "scontrol write batch_script %s -", out->job);
    ask(command, "#SBATCH", "--signal", out->signal);
    ask(command, "#SBATCH", "--open-mode", out->output);
}

bool bk_slurm_tasks_alone(int ranks)
{
    return ranks == 1 && atoi(variable("SLURM_STEP_NUM_TASKS")) > 1;
}
