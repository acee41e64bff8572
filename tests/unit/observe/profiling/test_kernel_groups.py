"""Kernels as they are called on an H100, an H200 and a CPU, and the operation of ours that each belongs to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sama_mega.observe.profiling.kernel_groups import OWN_KERNELS, Group, group_of

ELEMENTWISE = "void at::native::vectorized_elementwise_kernel<8, at::native::GeluCUDAKernelImpl(...), std::array<...>>"
MULTI_TENSOR = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<..., FusedAdamMathFunctor<float, 4>>"


@pytest.mark.parametrize(
    ("name", "ranges", "backward", "group"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", ("forward", "block 3", "qkv"), False, Group.GEMM),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas", ("backward",), True, Group.GEMM),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x128_16x5_tn_align4>(...)", (), False, Group.GEMM),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(...)", ("ffn",), False, Group.GEMM),
        ("aten::addmm", ("forward", "embeddings"), False, Group.GEMM),
        (
            "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>",
            (),
            False,
            "attention forward",
        ),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", (), True, Group.ATTENTION_BACKWARD),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", (), False, Group.ATTENTION_FORWARD),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", (), False, Group.ATTENTION_BACKWARD),
        ("fmha_cutlassF_f32_aligned_64x128_rf_sm80(...)", ("attention",), False, Group.ATTENTION_FORWARD),
        ("fmha_cutlassB_f32_aligned_64x64_k128_sm80(...)", ("attention",), True, Group.ATTENTION_BACKWARD),
        (
            "kernel_cutlass_kernel_flash_attncuteflash_bwd_sm90FlashAttentionBackwardSm90",
            (),
            True,
            "attention backward",
        ),
        ("aten::bmm", ("forward", "block 0", "attention"), False, Group.ATTENTION_FORWARD),
        ("forward_kernel", ("forward", "block 0", "attention"), False, Group.ATTENTION_FORWARD),
        ("norm_backward", ("backward",), True, Group.NORMS),
        ("normalise_kernel", ("forward", "block 0", "qk_norm_rope"), False, Group.ROPE),
        ("aten::mul", ("forward", "block 0", "qk_norm_rope"), False, Group.ROPE),
        ("aten::add", ("forward", "block 0"), False, Group.NORMS),
        (ELEMENTWISE, ("forward", "block 0", "ffn"), False, Group.POINTWISE),
        ("aten::copy_", ("forward", "block 0", "ffn"), False, Group.COPIES),
        ("aten::copy_", ("optimizer",), False, Group.OPTIMIZER),
        (MULTI_TENSOR, ("optimizer",), False, Group.OPTIMIZER),
        (MULTI_TENSOR, ("EMA",), False, Group.AVERAGE),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", ("encode", "encode text"), False, Group.ENCODERS),
        ("Memcpy HtoD (Pinned -> Device)", ("encode",), False, Group.ENCODERS),
        ("Memcpy DtoH (Device -> Pageable)", (), False, Group.COPIES),
        ("add_noise_forward", ("noise",), False, Group.NOISE),
        ("absolute_error_forward", ("forward", "semantic_loss"), False, Group.LOSS),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", (), False, "communication: all-gather"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(...)", (), True, "communication: reduce-scatter"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(...)", ("optimizer",), False, "communication: all-reduce"),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", (), False, "communication: send and receive"),
        ("ncclDevKernel_SendRecv(...)", ("block 1", "communication: all-to-all"), False, "communication: all-to-all"),
        ("ncclDevKernel_AllGather_RING_LL(...)", ("communication: objects",), False, "communication: all-gather"),
        ("c10d::_reduce_scatter_base_", ("backward",), True, "communication: reduce-scatter"),
        ("aten::copy_", ("encode", "communication: broadcast"), False, "communication: broadcast"),
        ("host", ("data wait",), False, Group.DATA_WAIT),
        ("host", ("forward", "block 0", "adaln"), False, Group.HOST),
        ("autograd::engine::evaluate_function: MulBackward0", ("backward",), True, Group.HOST),
        ("ColumnProductBackward", ("backward", "forward", "block 1", "qkv"), True, Group.HOST),
        ("void somebody::new_kernel<float>(float*)", ("forward",), False, Group.OTHER),
    ],
)
def test_group(name: str, ranges: tuple[str, ...], backward: bool, group: str) -> None:
    assert group_of(name, ranges, backward) == group


def test_every_kernel_of_ours_has_a_group(repo_root: Path) -> None:
    helpers = {"normals_of_blocks"}
    kernels = {
        name
        for file in (repo_root / "kernels/sama_kernels").glob("*/kernel.py")
        for name in re.findall(r"@triton\.jit\ndef ([a-z]\w*)", file.read_text())
    }
    assert kernels - helpers == OWN_KERNELS.keys()
