/* SPDX-License-Identifier: Apache-2.0 */
/* Time. */
#ifndef MACATTN_TOOLS_COMMON_CLOCK_H
#define MACATTN_TOOLS_COMMON_CLOCK_H

double clock_now_us(void);
void clock_sleep_us(int us);

#endif /* MACATTN_TOOLS_COMMON_CLOCK_H */
