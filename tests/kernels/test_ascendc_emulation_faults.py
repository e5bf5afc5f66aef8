"""The AscendC emulation finds planted faults: each kernel of the probes breaks one documented rule, and is refused."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from emulation.ascendc import build
from emulation.ascendc.launch import EmulatedKernels, Violation, reads, updates, writes

PROBES = Path(build.__file__).parent / "probes"
TILE = 64
CORRECT = ("correct", "ordered_by_flags", "by_tiling_key", "without_computing")

# A step of the pipeline gone wrong, and what the refusal must say.
PIPELINE_FAULTS = {
    "no_barrier": r"Muls: race between pipes: .*Muls on pipe V reads byte \d+ .*Adds on pipe V writes",
    "no_enque": r"DeQue: queue: expected a tensor that EnQue put there, got an empty queue",
    "no_deque": r"Adds: race between pipes: .*Adds on pipe V reads .*DataCopyPad on pipe MTE2 writes",
    "no_free": r"AllocTensor: buffers of a queue: expected a free one of 2, got none",
    "use_after_free": r"Adds: tensor: expected one that is allocated, got one that FreeTensor gave back",
    "stale_tensor": r"Adds: tensor: expected one that is allocated, got one that FreeTensor gave back",
    "whole_tail": r"DataCopyPad: out of bounds in global memory: expected bytes \[0, 1200\), got bytes \[1024, 1280\)",
    "whole_tail_compute": r"Adds: read of uninitialised Unified Buffer",
    "wrong_offset": r"DataCopyPad: out of bounds in global memory: .*got bytes \[1028, 1204\)",
    "shared_tail": r"launch: global memory: race between cores: .*cores \d and \d at byte 1024 of tensor 1",
}

# One call that breaks a rule, and what the refusal must say.
MISUSES = {
    "ub_overflow": r"InitBuffer: Unified Buffer: expected at most 196608 bytes in all, got 196672",
    "too_many_buffers": r"InitBuffer: buffers of a kernel: expected at most 64, got 65",
    "outside_of_a_tensor": r"Duplicate: out of bounds in the Unified Buffer: expected bytes \[4096, 8192\)",
    "outside_of_a_part": r"Duplicate: out of bounds in the Unified Buffer: expected bytes \[12288, 12320\)",
    "brcb_over_read": r"Brcb: out of bounds in the Unified Buffer: expected bytes \[12288, 12320\)",
    "brcb_of_fewer_than_eight": r"Brcb: read of uninitialised Unified Buffer: .*byte 4116 ",
    "uninitialised_read": r"Adds: read of uninitialised Unified Buffer: .*byte 4096 ",
    "uninitialised_padding": r"Adds: read of uninitialised Unified Buffer: .*byte 4116 ",
    "uninitialised_copy_out": r"DataCopyPad: read of uninitialised Unified Buffer",
    "queue_memory_of_the_tensor_before": r"Adds: read of uninitialised Unified Buffer",
    "repeat_over_255": r"Adds: repeatTime: expected 0 to 255, got 256",
    "mask_over_64_lanes": r"Adds: mask: expected at most 64, got 128",
    "unaligned_vector_operand": r"Adds: source: expected an address that is a multiple of 32, got 4",
    "unaligned_copy_target": r"DataCopyPad: local tensor: expected an address that is a multiple of 32, got 4112",
    "copy_of_part_of_a_block": r"DataCopy: bytes: expected a multiple of 32, got 48",
    "copy_of_part_of_an_element": r"DataCopyPad: blockLen: expected a multiple of the element's size, got 30",
    "copy_of_too_many_blocks": r"DataCopyPad: blockCount: expected at most 4095, got 4096",
    "copy_with_wide_padding": r"DataCopyPad: leftPadding in bytes: expected at most 32, got 36",
    "copy_into_a_calculation_buffer": r"DataCopyPad: position of the local tensor: .*got VECCALC",
    "read_past_global_memory": r"DataCopyPad: out of bounds in global memory: .*got bytes \[4080, 4100\)",
    "read_past_a_global_tensor": r"DataCopyPad: out of bounds of a GlobalTensor: .*got bytes \[0, 12\)",
    "gather_past_its_source": r"Gather: out of bounds in the Unified Buffer: expected bytes \[0, 4096\)",
    "gather_between_elements": r"Gather: byte offset: expected a multiple of the element's size, got 6",
    "gather_onto_its_source": r"Gather: operands that overlap",
    "partial_overlap": r"Adds: operands that overlap",
    "later_repeat_reads_result": r"Adds: operands that overlap",
    "accumulation_in_the_first_source": r"Add: operands that overlap",
    "reduction_onto_its_source": r"WholeReduceSum: operands that overlap",
    "comparison_onto_its_source": r"Compare: operands that overlap",
    "packing_over_its_source": r"GatherMask: operands that overlap",
    "integer_overflow": r"Adds: integer result: expected one that its type holds, got 2147483648",
    "cast_mode_of_another_pair": r"Cast: rounding mode: expected CAST_RINT",
    "compare_of_part_of_a_repeat": r"Compare: count: expected whole repeats of 256 bytes, got 32",
    "order_of_integers": r"Compare: mode for int32: expected EQ",
    "select_without_room": r"Select: Unified Buffer laid out beside .*expected at most 188416, got 192512",
    "sort_unaligned": r"Sort32: destination: expected an address that is a multiple of 256, got 4128",
    "sort_of_nan": r"Sort32: order of NaN",
    "merge_of_long_lists": r"MrgSort: elementLengths: expected at most 4095, got 4096",
    "merge_of_five_lists": r"MrgSort: validBit: expected 3, 7 or 15, got 31",
    "merge_repeating_three_lists": r"MrgSort: lists of a merge that repeats",
    "merge_of_an_unsorted_list": r"MrgSort: list: expected values in descending order, got a higher one at place 1",
    "merge_onto_a_list": r"MrgSort: operands that overlap",
    "no_flag_before_scalar_read": r"GetValue: race between pipes: .*GetValue on pipe S reads .*Adds on pipe V writes",
    "no_flag_after_scalar_write": r"DataCopyPad: race between pipes: .*pipe MTE3 reads .*SetValue on pipe S writes",
    "flag_of_another_pair": r"DataCopyPad: race between pipes: .*pipe MTE3 reads .*Adds on pipe V writes",
    "write_over_what_is_copied_out": r"Duplicate: race between pipes: .*pipe V writes .*DataCopyPad on pipe MTE3 reads",
    "two_copies_into_one_place": r"DataCopyPad: race between pipes: .*pipe MTE2 writes .*pipe MTE2 writes",
    "read_of_what_is_being_written_out": r"DataCopyPad: race in global memory: .*DataCopyPad on pipe MTE3 writes",
    "flag_set_twice": r"SetFlag: V_MTE3 event 1: expected its WaitFlag first, got the flag set twice",
    "flag_never_set": r"WaitFlag: V_MTE3 event 1: expected a SetFlag before it, got a wait without end",
    "flag_never_waited_for": r"SetFlag: V_MTE3 event 1: expected a WaitFlag before the kernel ends, got none",
    "event_id_out_of_range": r"SetFlag: event id: expected 0 to 7, got 8",
    "event_id_of_a_queue": r"SetFlag: V_MTE3 event 0: expected its WaitFlag first",
    "event_of_a_freed_buffer": r"WaitFlag: V_MTE2 event 0: expected a SetFlag before it",
    "queue_deeper_than_declared": r"EnQue: tensors in a queue: expected at most its depth of 1, got 2",
    "more_tensors_than_buffers": r"AllocTensor: buffers of a queue: expected a free one of 2, got none",
    "enque_twice": r"EnQue: tensor: expected one that is allocated, got one that is in the queue",
    "free_twice": r"FreeTensor: tensor: expected one that is allocated, got one that FreeTensor gave back",
    "free_by_another_queue": r"FreeTensor: tensor: expected one that this queue allocated, got another's",
    "queue_without_buffers": r"AllocTensor: queue: expected InitBuffer before it",
    "tensor_of_nothing": r"Adds: tensor: expected one from a queue or a buffer, got an empty one",
}

# What the compiler says of each forbidden call.
FORBIDDEN = (
    "Gather: this type is not supported",
    "Add: this type is not supported",
    "Exp: this type is not supported",
    "WholeReduce: this type is not supported",
    "Sort32: this type is not supported",
    "ShiftLeft: this type is not supported",
    "And: this type is not supported",
    "Duplicate: this type is not supported",
    "Cast: this pair of types is not supported",
    "Select: this type is not supported",
    "PipeBarrier: PIPE_S has no barrier",
)


@pytest.fixture(scope="module")
def pipeline() -> EmulatedKernels:
    return EmulatedKernels(PROBES / "pipeline.cpp")


@pytest.fixture(scope="module")
def misuse() -> EmulatedKernels:
    return EmulatedKernels(PROBES / "misuse.cpp")


@pytest.mark.parametrize("count", [1, TILE, TILE + 1, 5 * TILE - 20])
@pytest.mark.parametrize("cores", [1, 3])
def test_the_correct_pipeline_passes_every_check(pipeline: EmulatedKernels, count: int, cores: int) -> None:
    source, out = torch.randn(count), torch.empty(count)
    counters = pipeline.launch("correct", cores, reads(source), writes(out), ctypes.c_uint32(count))
    assert torch.equal(out, (source + 1) * 2)
    tiles = -(-count // TILE)
    assert [core.apis.get("Adds", (0, 0))[0] for core in counters] == [
        len(range(i, tiles, cores)) for i in range(cores)
    ]
    assert sum(core.bytes_from_gm for core in counters) == sum(core.bytes_to_gm for core in counters) == 4 * count


@pytest.mark.parametrize("fault", PIPELINE_FAULTS)
def test_a_pipeline_with_one_step_wrong_is_refused(pipeline: EmulatedKernels, fault: str) -> None:
    count = 5 * TILE - 20
    with pytest.raises(Violation, match=PIPELINE_FAULTS[fault]):
        pipeline.launch(fault, 2, reads(torch.randn(count)), writes(torch.empty(count)), ctypes.c_uint32(count))


def test_a_core_may_not_read_what_another_one_writes(pipeline: EmulatedKernels) -> None:
    """The output one element before the input: a tile's last input is the first output of the next tile."""

    def launch(cores: int, memory: torch.Tensor) -> None:
        pipeline.launch("correct", cores, updates(memory[1:]), updates(memory[:-1]), ctypes.c_uint32(300))

    numbers, memory = torch.randn(301), torch.empty(301)
    launch(1, memory.copy_(numbers))
    assert torch.equal(memory[:-1], (numbers[1:] + 1) * 2)
    with pytest.raises(Violation, match=r"launch: global memory: race between cores: .*cores \d and \d at byte 252 "):
        launch(2, memory.copy_(numbers))


def test_every_fault_of_the_pipeline_has_its_refusal() -> None:
    assert {*CORRECT, *PIPELINE_FAULTS} == set(build.kernel_names(PROBES / "pipeline.cpp"))


def test_flags_order_all_pairs_of_pipes(pipeline: EmulatedKernels) -> None:
    """Also by way of a third pipe, and through global memory: what one needs from another is never a race."""
    numbers, out = torch.arange(16.0), torch.zeros(16)
    pipeline.launch("ordered_by_flags", 1, reads(numbers), updates(out), ctypes.c_uint32(16))
    expected = (numbers + 1) * 2
    expected[0] = 101
    assert torch.equal(out, expected * 2)


def test_a_queue_from_memory_to_memory(pipeline: EmulatedKernels) -> None:
    """TQueBind<VECIN, VECOUT>, a tensor inside a buffer, event ids of one's own, a scalar from global memory."""
    numbers, out = torch.randn(100), torch.zeros(100)
    pipeline.launch("without_computing", 1, reads(numbers), writes(out), ctypes.c_uint32(100))
    expected = numbers.clone()
    expected[:8] = numbers[99]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("key", [7, 8])
def test_a_kernel_sees_its_tiling_key(pipeline: EmulatedKernels, key: int) -> None:
    numbers, out = torch.arange(16.0), torch.zeros(16)
    pipeline.launch("by_tiling_key", 1, reads(numbers), writes(out), ctypes.c_uint32(16), tiling_key=key)
    assert torch.equal(out, (numbers + 1) * 2) is (key == 7)


@pytest.mark.parametrize("name", build.kernel_names(PROBES / "misuse.cpp"))
def test_a_call_against_the_rules_is_refused(misuse: EmulatedKernels, name: str) -> None:
    with pytest.raises(Violation, match=MISUSES[name]) as raised:
        misuse.launch(name, 1, updates(torch.zeros(1024)))
    assert str(raised.value).startswith("core 0: ")


def test_a_refused_launch_leaves_the_next_one_alone(pipeline: EmulatedKernels) -> None:
    source, out = torch.randn(300), torch.empty(300)
    with pytest.raises(Violation):
        pipeline.launch("no_enque", 1, reads(source), writes(out), ctypes.c_uint32(300))
    pipeline.launch("correct", 1, reads(source), writes(out), ctypes.c_uint32(300))
    assert torch.equal(out, (source + 1) * 2)


def test_global_memory_that_is_no_argument_or_only_an_input_is_refused(pipeline: EmulatedKernels) -> None:
    source, out, count = torch.randn(8), torch.empty(8), ctypes.c_uint32(8)
    with pytest.raises(Violation, match="write to an input"):
        pipeline.launch("correct", 1, reads(source), reads(out), count)
    with pytest.raises(Violation, match="read of uninitialised global memory"):
        pipeline.launch("correct", 1, writes(source), writes(out), count)
    with pytest.raises(Violation, match="an address in a tensor of the launch"):
        pipeline.launch("correct", 1, ctypes.c_void_p(source.data_ptr()), writes(out), count)


def test_types_that_the_device_does_not_take_do_not_compile() -> None:
    with pytest.raises(build.BuildError) as raised:
        build.build_kernel(PROBES / "forbidden.cpp")
    assert not [message for message in FORBIDDEN if message not in str(raised.value)]


def test_a_source_without_kernels_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    with pytest.raises(build.BuildError, match="found none"):
        build.build_kernel(empty)
