"""Compiles Triton's kernels for CUDA devices that are not there, and prints what the machine code rounds with."""

import itertools
import json

from lit_pref.scoring import kernels

ROW = {"x": "*fp32", "x_stride": "i32", "bias": "*fp32", "targets": "*i64"}
TILE = {"start": "i32", "columns": "i32", "scale": "fp32", "cap": "fp32"}
OUT = {"out": "*bf16", "out_stride": "i32"}
SIGNATURES = {
    "_fold": ROW | dict.fromkeys(("tops", "totals", "picked"), "*fp32") | OUT | {"fades": "*fp32"} | TILE,
    "_logit_gradients": ROW | {"lses": "*fp32", "upstreams": "*fp32"} | OUT | TILE,
}


def main():
    # Imported here, because the collection of doctests imports this file also where there is no triton.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    found = {}
    for name, capability, chosen in itertools.product(SIGNATURES, (80, 90, 100), (False, True)):
        flags = dict.fromkeys(("HAS_BIAS", "HAS_CAP", *(["WRITES"] if name == "_fold" else [])), chosen)
        constants = {**flags, "SIZE": kernels.BLOCK}
        signature = SIGNATURES[name] | dict.fromkeys(constants, "constexpr")
        source = ASTSource(getattr(kernels, name), signature, constexprs=constants)
        target, options = GPUTarget("cuda", capability, 32), {"num_warps": kernels.WARPS}
        compiled = triton.compile(source, target=target, options=options)
        rounds = "cvt.rn.bf16" in compiled.asm["ptx"]
        found[f"{name} {capability} {chosen}"] = [len(compiled.asm["cubin"]), rounds]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
