"""Host-side tiling of the AscendC kernels, as plain C++: what fits, which key, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels.ascendc_tiling import ROW_BY_ROW, TABLE_IN_UB, RefusedTilingError, tile_gating_reroute, tile_reroute

# 192 KiB, less the 8 KiB at its end that AscendC's Select takes.
UB_BYTES = 184 * 1024

tokens = st.one_of(st.integers(1, 300), st.integers(1, 2**31 - 2))
cores = st.integers(1, 48)


@given(tokens, st.integers(1, 64), st.integers(1, 129), st.integers(1, 1024), st.booleans(), cores)
def test_reroute_fits_into_the_unified_buffer_and_leaves_no_core_idle(
    tokens: int, top_k: int, map_rows: int, experts: int, wide_ids: bool, cores: int
) -> None:
    tiling = tile_reroute(tokens, top_k, map_rows, experts, wide_ids=wide_ids, cores=cores)
    assert 0 < tiling.ub_bytes <= UB_BYTES
    assert 1 <= tiling.cores <= min(cores, tokens)
    share = -(-tokens // tiling.cores)
    assert 1 <= tiling.tile_rows <= share
    assert tiling.tile_rows * top_k <= 16384
    if tiling.key == TABLE_IN_UB:
        assert map_rows <= share and tiling.row_pitch == experts
        assert map_rows * experts * 4 < tiling.ub_bytes
    else:
        assert tiling.row_pitch == -(-experts // 8) * 8
    assert (tiling.tokens, tiling.top_k, tiling.map_rows, tiling.experts) == (tokens, top_k, map_rows, experts)


@given(st.data(), tokens, cores)
def test_gating_fits_into_the_unified_buffer_and_leaves_no_core_idle(
    data: st.DataObject, tokens: int, cores: int
) -> None:
    n_group = data.draw(st.integers(1, 16))
    experts = n_group * data.draw(st.integers(2, 512 // n_group))
    topk_group = data.draw(st.integers(1, n_group))
    top_k = data.draw(st.integers(1, min(16, topk_group * experts // n_group)))
    map_rows = data.draw(st.integers(1, 129))
    settings = {
        "n_group": n_group,
        "topk_group": topk_group,
        "logits": data.draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        "biased": data.draw(st.booleans()),
        "scoring": data.draw(st.sampled_from(["softmax", "sigmoid"])),
    }
    try:
        tiling = tile_gating_reroute(tokens, experts, top_k, map_rows, cores=cores, **settings)
    except RefusedTilingError as refused:
        assert "exceed 512 columns" in str(refused)
        padded_groups = 1 << (n_group - 1).bit_length()
        padded_size = max(32, 1 << (experts // n_group - 1).bit_length())
        assert 1 <= topk_group < n_group and padded_groups * padded_size > 512
        return
    assert 0 < tiling.ub_bytes <= UB_BYTES
    assert 1 <= tiling.cores <= min(cores, tokens)
    assert tiling.tile_rows % 8 == 0 and 8 <= tiling.tile_rows <= 64
    assert tiling.groups == (n_group if topk_group < n_group else 1)
    assert tiling.groups * tiling.group_size == experts
    assert tiling.group_size <= tiling.group_pitch and tiling.groups * tiling.group_pitch <= tiling.row_pitch
    for pitch, least in ((tiling.group_pitch, 32), (tiling.row_pitch, 64)):
        assert pitch & (pitch - 1) == 0 and least <= pitch <= 512
    if tiling.key == TABLE_IN_UB:
        assert map_rows <= -(-tokens // tiling.cores)
        assert map_rows * tiling.row_pitch * 4 < tiling.ub_bytes


@pytest.mark.parametrize(
    ("tokens", "map_rows", "experts", "key"),
    [
        (65536, 21, 256, TABLE_IN_UB),  # 21 KiB of map, 1,639 tokens a core
        (1, 21, 256, ROW_BY_ROW),  # one token needs one row
        (40 * 20, 21, 256, ROW_BY_ROW),  # 20 tokens a core: fewer rows than the table has
        (40 * 21, 21, 256, TABLE_IN_UB),
        (65536, 65, 1024, ROW_BY_ROW),  # the table alone is 260 KiB
        (65536, 65, 512, TABLE_IN_UB),  # 130 KiB leave room for rerouting's small tiles
    ],
)
def test_reroute_takes_the_table_where_that_moves_fewer_bytes_and_fits(
    tokens: int, map_rows: int, experts: int, key: int
) -> None:
    assert tile_reroute(tokens, 8, map_rows, experts).key == key


@pytest.mark.parametrize(
    ("tokens", "map_rows", "experts", "key"),
    [
        (65536, 21, 256, TABLE_IN_UB),
        (65536, 65, 256, TABLE_IN_UB),
        (65536, 65, 512, ROW_BY_ROW),  # 130 KiB leave too little for eight tokens
        (65536, 5, 512, TABLE_IN_UB),
        (1, 21, 256, ROW_BY_ROW),
        (300, 21, 256, ROW_BY_ROW),
    ],
)
def test_gating_takes_the_table_where_that_moves_fewer_bytes_and_fits(
    tokens: int, map_rows: int, experts: int, key: int
) -> None:
    assert tile_gating_reroute(tokens, experts, 8, map_rows, logits="bfloat16").key == key


def test_all_cores_work_on_a_large_batch_and_few_on_a_small_one() -> None:
    assert tile_gating_reroute(65536, 64, 8, 5).cores == 40
    assert tile_gating_reroute(64, 64, 8, 5).cores == 8
    assert tile_gating_reroute(1, 64, 8, 5).cores == 1
    assert tile_reroute(65536, 8, 5, 64, cores=48).cores == 48
    assert tile_reroute(64, 8, 5, 64).cores == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"top_k": 17}, "top_k must be 1 to 16"),
        ({"top_k": 0}, "top_k must be 1 to 16"),
        ({"experts": 513}, "1 to 512 experts"),
        ({"tokens": 2**31 - 1}, "at most 2147483646 tokens"),
        ({"n_group": 3}, "equal size"),
        ({"n_group": 4, "topk_group": 5}, "equal size"),
        ({"n_group": 16, "topk_group": 1, "top_k": 9}, "top_k must not exceed"),
        ({"n_group": 128, "topk_group": 64, "biased": True}, "two experts or more"),
        ({"n_group": 32, "topk_group": 16}, "exceed 512 columns"),
        ({"map_rows": 0}, "1 or more"),
    ],
)
def test_gating_refuses_what_the_kernel_does_not_do(change: dict[str, int], text: str) -> None:
    asked = {"tokens": 9, "experts": 128, "top_k": 8, "map_rows": 5} | change
    with pytest.raises(RefusedTilingError, match=text):
        tile_gating_reroute(**asked)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"top_k": 1025}, "at most 1024 expert ids"),
        ({"tokens": 0}, "1 or more"),
        ({"experts": 30000}, "do not fit into the unified buffer"),
    ],
)
def test_reroute_refuses_what_the_kernel_does_not_do(change: dict[str, int], text: str) -> None:
    asked = {"tokens": 9, "top_k": 8, "map_rows": 5, "experts": 64} | change
    with pytest.raises(RefusedTilingError, match=text):
        tile_reroute(**asked)
