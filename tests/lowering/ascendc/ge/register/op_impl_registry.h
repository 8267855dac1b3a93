#include "../ge.h"
