#include "cli/image.h"
int image_build(int argc, char **argv){(void)argc;(void)argv;return 1;}
