#include "../../ge.h"
