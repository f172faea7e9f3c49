# SPDX-License-Identifier: Apache-2.0
"""python -m macattn info: what was installed, and what this machine can run of it."""
import argparse

import macattn


def number(value):
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:g}"


def default(setting):
    if setting.initial < setting.low:
        return "to be set"
    if setting.type == "policy":
        return macattn.policies()[int(setting.initial)]
    if setting.type == "dtype":
        return macattn.dtypes()[int(setting.initial)]
    return number(setting.initial)


def info():
    print(f"macattn {macattn.version()}, {macattn.path()}")
    best = next((name for name, here in macattn.isas().items() if here), None)
    print("CPU: " + ", ".join(name + (" (used)" if name == best else "" if here else " (not on this machine)")
                              for name, here in macattn.isas().items()))
    print("GPU: " + ("compute capability 8.0 and later" if macattn.has_cuda() else "not built: there was no nvcc"))
    print("policies: " + ", ".join(macattn.policies()))
    print("settings:")
    for s in macattn.settings():
        span = "" if s.type in ("policy", "dtype") else f"{number(s.low)} to {number(s.high)}"
        print(f"  {s.name:<13} {default(s):<10} {s.about}" + (f" ({span})" if span else ""))


def main():
    parser = argparse.ArgumentParser(prog="python -m macattn", description=__doc__)
    parser.add_argument("command", choices=["info"])
    parser.parse_args()
    info()


main()
