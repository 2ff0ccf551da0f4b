/* birkhoff help: the commands, and the page of one. */
#include "jobs/help.h"

#include "jobs/arguments.h"

#include <stdio.h>

static void print_all(void)
{
    printf("Birkhoff %s: Transformers and mixtures of experts with optimal-transport parts.\n\n"
           "usage: birkhoff COMMAND [OPTIONS] [key=value ...]\n\ncommands:\n",
           BIRKHOFF_VERSION);
    for (int i = 0; bk_commands[i]; i++)
        printf("  %-9s  %s\n", bk_commands[i]->name, bk_commands[i]->summary);
    printf(
        "\noptions of every command:\n"
        "  -h, --help      this page, or the page of the command\n"
        "  -V, --version   the version\n"
        "  -q, --quiet     no progress; warnings, errors and results stay\n"
        "      --no-color  no colours (also: the environment's NO_COLOR)\n\n"
        "key=value sets a key of the configuration by its dotted path: optim.lr=3e-4.\n"
        "birkhoff help COMMAND shows one command, birkhoff kinds the plug-ins and their keys.\n");
}

void bk_help_print(const bk_command *command)
{
    if (!command) {
        print_all();
        return;
    }
    printf("usage: birkhoff %s\n\n%s.\n", command->usage, command->summary);
    if (command->help)
        printf("\n%s", command->help);
    if (command->print_keys) {
        printf("\n");
        command->print_keys();
    }
}

static bk_status run(bk_context *context)
{
    const bk_command *command = NULL;
    if (context->argc > 1)
        return bk_fail(BK_USAGE, "help takes one command (%d given): birkhoff help COMMAND",
                       context->argc);
    if (context->argc == 1 && !(command = bk_command_find(context->argv[0])))
        return bk_command_unknown(context->argv[0]);
    bk_help_print(command);
    return BK_OK;
}

const bk_command bk_command_help = {
    .name = "help",
    .summary = "the commands, or the page of one",
    .usage = "help [COMMAND]",
    .help = NULL,
    .local = true,
    .run = run,
};
