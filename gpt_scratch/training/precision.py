"""Which precision of matrix products is fast here: fp32 without loss, or bf16."""

import os

import torch


def bf16_is_faster(use_cpu: bool) -> bool:
    """Whether training should use bf16 autocast by default: on a GPU that multiplies bf16 in hardware, or a CPU that does.

    Args:
        use_cpu: train on the CPU even if there is a GPU.
    """
    if os.environ.get("ACCELERATE_MIXED_PRECISION") in ("fp16", "fp8"):  # chosen with accelerate
        return False
    if torch.accelerator.is_available() and not use_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_multiplies_bf16()


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has AMX or AVX512_BF16, without which bf16 products are slower than fp32's.

    On an AMD EPYC with AVX512_BF16 (Zen 4), products of 256 to 2,048 columns were 2.2 to 2.3 times as fast as fp32's.
    """
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # private, as of torch 2.13


def use_fast_fp32_matmul() -> bool:
    """On CPUs without AMX, use oneDNN for fp32 matrix products, which is faster than MKL on AMD. Returns whether it was enabled.

    "medium" allows bf16 internally, but without AMX oneDNN stays in fp32, even with AVX512_BF16 (measured relative error against fp64:
    4e-7, as MKL's). With AMX, or on a GPU, it would cost precision, so nothing is changed.
    """
    if torch.cuda.is_available() or torch.cpu._is_amx_tile_supported():
        return False
    torch.set_float32_matmul_precision("medium")
    return True
