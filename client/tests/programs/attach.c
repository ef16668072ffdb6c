/* Attaching and detaching again and again: whoever has left has nothing of the runtime any more. */
#include "check.h"

#include <dirent.h>

#define ROUNDS 50

static int open_files(void)
{
    int files = 0;
    DIR *directory = opendir("/proc/self/fd");
    TRUE(directory != NULL);
    while (readdir(directory) != NULL)
        files++;
    TRUE(closedir(directory) == 0);
    return files;
}

/* Mappings of this process whose line has the word in it. */
static int mappings(const char *word)
{
    char line[512];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    TRUE(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL)
        found += strstr(line, word) != NULL;
    TRUE(fclose(maps) == 0);
    return found;
}

static void come_and_go(void)
{
    OK(dragon_attach());
    TRUE(dragon_is_attached());
    TRUE(mappings("memfd:dragon") == 3);
    dragon_channel *channel = new_channel(4, 256);
    send_text(channel, "here", 1);
    expect_text(channel, "here", 1);
    TRUE(dragon_detach() != DRAGON_OK);
    OK(dragon_channel_close(channel));
    OK(dragon_detach());
    TRUE(!dragon_is_attached());
    TRUE(mappings("memfd:dragon") == 0);
}

int main(void)
{
    int files = open_files();
    come_and_go();
    TRUE(open_files() == files);
    int before = mappings("");
    for (int round = 0; round < ROUNDS; round++)
        come_and_go();
    TRUE(open_files() == files);
    /* The C library may keep some memory of its own. */
    TRUE(mappings("") < before + ROUNDS / 2);
    return 0;
}
