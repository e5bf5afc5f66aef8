// The header a kernel includes: the AscendC names it may use here, computed and checked on a CPU.
#pragma once

#define __global__
#define __aicore__
#define __gm__
#define __ubuf__
#define GM_ADDR uint8_t*
#define TILING_KEY_IS(key) (emulated::core("TILING_KEY_IS").launch.tiling_key == (key))
#define KERNEL_TYPE_AIV_ONLY
#define KERNEL_TASK_TYPE_DEFAULT(type)

#include "arithmetic.h"
#include "conversions.h"
#include "copies.h"
#include "fills.h"
#include "gathering.h"
#include "launch.h"
#include "queues.h"
#include "reductions.h"
#include "selection.h"
#include "sorting.h"
#include "synchronisation.h"
#include "tensors.h"
