"""Every rule of the API that the model enforces: a mutant that breaks it, beside the kernel that keeps it."""

from __future__ import annotations

import pytest
import torch
from programs import MACHINE, mutants, program

from gr_compile.lowering.ascendc.functional_model import Broken, In, Out, Tiling, Workspace
from gr_compile.lowering.ascendc.functional_model.arguments import Argument

X = torch.randn(1003)
Y = torch.randn(1003)


def _add(mutant: str, blocks: int = 2) -> torch.Tensor:
    tiling = Tiling({"n": 1003, "mutant": mutants("queues")[mutant]})
    arguments: list[Argument] = [In(X), In(Y), Out((1003,), torch.float32), Workspace(1024), tiling]
    return program("queues").run("add", arguments, MACHINE, blocks=blocks)[0]


def _exp_add(mutant: str, auto_sync: bool = False) -> torch.Tensor:
    tiling = Tiling({"n": 512, "mutant": mutants("flags")[mutant]})
    arguments: list[Argument] = [In(X[:512]), Out((512,), torch.float32), tiling]
    return program("flags").run("exp_add", arguments, MACHINE, auto_sync=auto_sync)[0]


def _one(mutant: str) -> torch.Tensor:
    tiling = Tiling({"n": 256, "mutant": mutants("instructions")[mutant]})
    return program("instructions").run("one", [In(X[:256]), Out((256,), torch.float32), tiling], MACHINE)[0]


def _sum(mutant: str, blocks: int = 4) -> torch.Tensor:
    x = torch.arange(100, dtype=torch.int32)
    tiling = Tiling({"n": 100, "mutant": mutants("cores")[mutant]})
    arguments: list[Argument] = [In(x), Out((blocks, 8), torch.int32), Workspace(blocks * 32), tiling]
    return program("cores").run("sum", arguments, MACHINE, blocks=blocks)[0]


def _count(mutant: str) -> torch.Tensor:
    tiling = Tiling({"n": 0, "mutant": mutants("cores")[mutant]})
    return program("cores").run("count", [Out((8,), torch.float32), tiling], MACHINE, blocks=4)[0]


@pytest.mark.parametrize("blocks", [1, 2, 48])
def test_a_kernel_that_keeps_the_rules_passes(blocks: int) -> None:
    torch.testing.assert_close(_add("NOTHING", blocks), X + Y, rtol=0, atol=0)


def test_flags_and_barriers_in_place_of_queues() -> None:
    torch.testing.assert_close(_exp_add("NOTHING"), X[:512].exp() + X[:512])


def test_instructions_within_their_limits() -> None:
    torch.testing.assert_close(_one("NOTHING"), torch.where(X[:256] < 2, X[:256], 0), rtol=0, atol=0)


@pytest.mark.parametrize("blocks", [1, 4, 48])
def test_cores_exchange_what_they_have_after_sync_all(blocks: int) -> None:
    assert (_sum("NOTHING", blocks) == 4950).all()


def test_atomic_additions_of_all_cores() -> None:
    assert (_count("NOTHING") == 10).all()


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        ("UB_OVERFLOW", "unified buffer overflows by 512 bytes"),
        ("LENGTH", "36 bytes, no multiple of 32"),
        ("ADDRESS", "not aligned to 32 bytes"),
        ("MISSING_FREE", "missing FreeTensor"),
        ("MISSING_DEQUE", r"Add on pipe V reads the unified buffer .* pipe MTE2 wrote .*hazard"),
        ("EMPTY_DEQUE", "the queue is empty"),
        ("FULL_QUEUE", "queue of depth 1 is full"),
        ("AFTER_FREE", "after its FreeTensor"),
        ("GLOBAL_BOUNDS", "not inside the GlobalTensor of 1002 elements|out of bounds"),
        ("LOCAL_BOUNDS", "out of bounds"),
        ("UNWRITTEN_LOCAL", "no one wrote"),
        ("UNWRITTEN_GLOBAL", "argument 3 at byte 0, which no one wrote"),
        ("INPUT_WRITTEN", "argument 0, an input"),
        ("OUTPUT_UNWRITTEN", "argument 2: byte 1024 of 4012 was never written"),
        ("MANY_BUFFERS", "9 queue buffers at one TPosition"),
        ("DOUBLE_FREE", "after its FreeTensor"),
        ("FREE_QUEUED", "still in the queue"),
        ("OTHER_QUEUE", "of another queue"),
        ("JUNK_OUT", "junk"),
        ("JUNK_SCALAR", "GetValue reads junk"),
        ("BLOCKS_COLLIDE", r"vector core 1 .*: DataCopyPad .*vector core 0 .* wrote .*no flag between the cores"),
        ("NO_BUFFER_LEFT", "all 2 buffers of the queue are in use"),
        ("STALE_BUFFER", "no one wrote"),
        ("RAW_POINTER", "died of SIGSEGV"),
    ],
)
def test_rules_of_queues_and_copies(mutant: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _add(mutant)


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        ("NO_IN_FLAG", r"Exp on pipe V reads .* pipe MTE2 wrote"),
        ("NO_OUT_FLAG", r"DataCopy on pipe MTE3 reads .* pipe V wrote"),
        ("NO_RETURN_FLAG", r"DataCopy on pipe MTE2 writes .* pipe (MTE2 wrote|V read)"),
        ("RETURN_TOO_EARLY", r"writes .* pipe MTE3 read"),
        ("WRONG_ID", r"WaitFlag<MTE2_V>\(1\) without a SetFlag"),
        ("ID_RANGE", "event id 8 is not in 0 to 7"),
        ("TWICE", "twice without a WaitFlag"),
        ("WAIT_ALONE", "without a SetFlag before it"),
        ("SET_ALONE", r"SetFlag<MTE2_V>\(3\) without a WaitFlag"),
        ("NO_BARRIER", r"Add on pipe V (reads|writes) .* pipe V"),
        ("SCALAR_STORE", r"DataCopy on pipe MTE3 reads .* pipe S wrote"),
        ("NO_SCALAR_FLAG", r"GetValue on pipe S reads .* pipe V wrote"),
        ("COPIES_OVERLAP", r"DataCopy on pipe MTE2 writes .* pipe MTE2 wrote"),
        ("SCALAR_BARRIER", "the scalar unit has no barrier"),
        ("EVENTS_EXHAUSTED", "all 8 ids of MTE2_V"),
    ],
)
def test_rules_of_flags(mutant: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _exp_add(mutant)


def _block_sums(mutant: str) -> torch.Tensor:
    tiling = Tiling({"n": 512, "mutant": mutants("flags")[mutant]})
    arguments: list[Argument] = [In(X[:512]), Out((8,), torch.float32), tiling]
    return program("flags").run("block_sums", arguments, MACHINE, auto_sync=False)[0]


def test_what_the_scalar_unit_waited_for_is_over_for_all_that_it_issues() -> None:
    torch.testing.assert_close(_block_sums("NOTHING"), X[:512].view(8, 64).sum(1))
    with pytest.raises(Broken, match=r"DataCopy on pipe MTE2 writes .* pipe (V read|MTE2 wrote)"):
        _block_sums("NO_SCALAR_FLAG")


@pytest.mark.parametrize("mutant", ["NO_BARRIER"])
def test_the_compiler_orders_the_vector_pipe_where_it_is_let(mutant: str) -> None:
    torch.testing.assert_close(_exp_add(mutant, auto_sync=True), X[:512].exp() + X[:512])


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        ("REPEATS", "repeatTime 256 is not in 0 to 255"),
        ("MASK", "mask 65 is more than the 64 elements"),
        ("OVERLAP", "earlier repeat of the same instruction wrote"),
        ("FUSED_OVERLAP", "FusedMulAdd .*earlier repeat of the same instruction wrote"),
        ("BLOCK_STRIDE", "block stride of 0"),
        ("COMPARE_LENGTH", "384 bytes, no multiple of 256"),
        ("COMPARE_TYPE", "int32_t is only compared for EQ"),
        ("SELECT_SPACE", "need 8192 bytes of the unified buffer"),
        ("SELECT_MODE", "only mode 1 takes a scalar"),
        ("CAST_PAIR", "from int64_t to half is not supported"),
        ("CAST_MODE", "from float to int32_t has no rounding mode 0"),
        ("TYPE", "Exp does not take int32_t"),
        ("GATHER_OFFSET", "byte offset 3 is not aligned to float"),
        ("REDUCE_ADDRESS", "not aligned to 4 bytes"),
        ("WORKSPACE_SIZE", "out of bounds"),
        ("PAD_BYTES", "padding of 36 bytes is more than 32"),
        ("PAD_LENGTH", r"30 is no multiple of sizeof\(float\)"),
        ("PAD_BLOCKS", "blockCount 4096"),
        ("COPY_PATH", "blockCount 4096"),
        ("ATOMIC_TYPE", "SetAtomicAdd does not take uint16_t"),
        ("UNALIGNED_OPERAND", "not aligned to 32 bytes"),
        ("BUFFERS_64", "more than 64 buffers"),
        ("TBUF_SIZE", "1025 elements from byte 0 do not fit its 4096 bytes"),
        ("MASK_REGISTER", "needs SetMaskCount"),
    ],
)
def test_limits_of_instructions(mutant: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _one(mutant)


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        ("NO_SYNC", "no one wrote|no flag between the cores"),
        ("ONE_MISSES", r"deadlock: .*vector core 0 .* waits for SyncAll; .*the others have ended"),
    ],
)
def test_rules_of_sync_all(mutant: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _sum(mutant)


def test_more_blocks_than_cores_cannot_wait_for_each_other() -> None:
    with pytest.raises(Broken, match="49 blocks on 48 cores"):
        _sum("NOTHING", blocks=49)


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        ("ATOMIC_UNWRITTEN", "which no one wrote"),
        ("ATOMIC_UNORDERED", "no flag between the cores"),
        ("MODE_ONE", "mode 1 needs a kernel with a cube core"),
        ("FLAG_RANGE", "flag 16 is not in 0 to 15"),
        ("ONE_FLAG_MISSES", r"deadlock: .*waits for CrossCoreWaitFlag\(3\)"),
    ],
)
def test_rules_of_atomics_and_cross_core_flags(mutant: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _count(mutant)
