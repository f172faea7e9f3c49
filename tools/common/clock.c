/* SPDX-License-Identifier: Apache-2.0 */
#include "clock.h"

#include <time.h>

double clock_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

void clock_sleep_us(int us)
{
    struct timespec wait = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&wait, NULL);
}
