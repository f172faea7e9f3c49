$ macattn info --quick
macattn      0.* (commit *)
isa          *
compiled in  *scalar*
kernels      *
types        *
policies     exact paper budget
cpu          *, * usable
caches       L1d * KiB, L2 * KiB, last level * KiB
memory       * GiB, transparent huge pages: *
system       *
$ macattn info --quick --json | fields isa version commit cpu cpus=$(nproc) l2_bytes llc_bytes
1 rows
$ macattn info --json | fields read_gbps fma_peak_gflops
1 rows
$ manual "$SRC/tools"
compared
