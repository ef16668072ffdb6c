/* Processes with options, signals to trees, and a wait for any of several: run in a runtime. */
#include "check.h"

#include <string.h>

static dragon_process *start(const char *script, const dragon_process_options *options)
{
    dragon_bytes argv[3] = {{"sh", 2}, {"-c", 2}, {script, strlen(script)}};
    dragon_spawn_request request = {.size = sizeof request, .node = DRAGON_BY_POLICY, .argv = argv, .argc = 3};
    dragon_process *process = NULL;
    EXPECT(DRAGON_OK, dragon_spawn_with(&request, options, &process, NULL));
    return process;
}

static int32_t join(dragon_process *process)
{
    int32_t status = -1;
    EXPECT(DRAGON_OK, dragon_process_wait(process, DRAGON_NEVER, &status));
    EXPECT(DRAGON_OK, dragon_process_close(process));
    return status;
}

int main(int argc, char **argv)
{
    char file[4096];
    char line[64] = "";
    const uint32_t cpu_set[] = {100000};
    const dragon_limit limit = {.kind = DRAGON_LIMIT_CORE, .soft = 0, .hard = DRAGON_UNLIMITED};
    dragon_process_options options = {.size = sizeof options, .umask = 027, .numa_node = -1, .nice = 1,
        .policy = DRAGON_POLICY_LOCAL, .lives = DRAGON_LIVES_WITH_CREATOR, .limits = &limit, .limit_count = 1,
        .output = DRAGON_OUTPUT_MERGE, .cpus = 1};
    dragon_process *processes[2];
    size_t place = 7;
    int32_t status = -1;
    FILE *written = NULL;

    TRUE(argc == 2);
    snprintf(file, sizeof file, "%s/out", argv[1]);
    options.output_file = file;
    TRUE(join(start("umask; ulimit -c >&2", &options)) == 0);
    options.output |= DRAGON_OUTPUT_APPEND;
    TRUE(join(start("echo more", &options)) == 0);
    written = fopen(file, "r");
    TRUE(written != NULL);
    TRUE(fread(line, 1, sizeof line - 1, written) > 0);
    fclose(written);
    TRUE(strcmp(line, "0027\n0\nmore\n") == 0);

    processes[0] = start("sleep 1000 & sleep 1000", NULL);
    processes[1] = start("exit 5", NULL);
    EXPECT(DRAGON_OK, dragon_process_wait_any((const dragon_process *const *)processes, 2, DRAGON_NEVER, &place, &status));
    TRUE(place == 1 && status == 5 << 8);
    EXPECT(DRAGON_OK, dragon_process_signal_tree(processes[0], 9));
    TRUE(join(processes[0]) == 9);
    TRUE(join(processes[1]) == 5 << 8);

    options.cpu_set = cpu_set;
    options.cpu_count = 1;
    {
        dragon_bytes words[1] = {{"true", 4}};
        dragon_spawn_request request = {.size = sizeof request, .node = DRAGON_BY_POLICY, .argv = words, .argc = 1};
        EXPECT(DRAGON_INVALID_ARGUMENT, dragon_spawn_with(&request, &options, NULL, NULL));
        TRUE(strstr(dragon_last_error(), "CPU 100000 wanted") != NULL);
        options.policy = 77;
        EXPECT(DRAGON_INVALID_ARGUMENT, dragon_spawn_with(&request, &options, NULL, NULL));
        TRUE(strstr(dragon_last_error(), "policy 77") != NULL);
    }
    return 0;
}
