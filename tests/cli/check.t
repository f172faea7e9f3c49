$ macattn check --cases 5 --isa scalar
pass  scalar      attention   5 of 5 shapes, largest error *
pass  scalar      reuse       10500 of 10500 decisions, 24 of 24 steps, largest error *
$ macattn check --cases 6 | grep -vE '^(pass|skip) '
[1]
# With this seed the queries of a step came to be remembered ones that they are to miss.
$ macattn check --cases 1 --seed 77 --isa scalar
pass  scalar      attention   1 of 1 shapes, largest error *
pass  scalar      reuse       10500 of 10500 decisions, 24 of 24 steps, largest error *
