// What translated kernels include.
#pragma once
#include "async.h"
