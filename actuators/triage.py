"""Which faults warrant moving work away from a node.

XID meanings follow NVIDIA's catalogue; the recovery action the driver reports wins over them. An
XID of an application's own making moves nothing, unless one GPU keeps raising it.
"""

from typing import Final, Literal

from gpuloop.schemas.messages import Fault

Verdict = Literal["ignore", "count", "evacuate", "recovered"]

EVACUATE_XIDS: Final = frozenset(
    {
        46,  # GPU timeout
        48,  # double-bit ECC error
        62,  # PMU halt
        64,  # row remap failed
        74,  # NVLink error
        79,  # fallen off the bus
        95,  # uncontained memory error
        109,  # context switch timeout
        110,  # security fault
        119,  # GSP RPC timeout
        120,  # GSP error
        136,  # link training failed
        140,  # unrecovered ECC error
        143,  # GPU initialisation error
        155,  # NVLink, defined by software
        156,  # resource retirement
        158,  # fatal timeout
    }
)

COUNTED_XIDS: Final = frozenset({13, 31})
"""An application's fault when seen once, a GPU's when it keeps coming back on the same one."""

REPEATS: Final = 3

_DRAINING_ACTIONS: Final = frozenset({1, 2, 3, 4})


def triage(fault: Fault) -> Verdict:
    """Return what a fault asks for.

    Preemptive clean-up (45), contained errors (94), recorded remaps (63) and what is not in the
    catalogue are ignored: they are symptoms, or nothing to destroy work over.
    """
    match fault.kind:
        case "recovered":
            return "recovered"
        case "lost" | "thermal" | "ecc" | "reclaim_notice":
            return "evacuate"
        case "xid":
            if fault.recovery_action in _DRAINING_ACTIONS or fault.xid in EVACUATE_XIDS:
                return "evacuate"
            return "count" if fault.xid in COUNTED_XIDS else "ignore"


def describe(fault: Fault) -> str:
    """Return a fault in a few words."""
    if fault.kind == "xid":
        return f"XID {fault.xid} on {fault.node}"
    words = {
        "lost": "is lost",
        "thermal": "overheats",
        "ecc": "has memory errors",
        "reclaim_notice": "will be reclaimed",
        "recovered": "has recovered",
    }
    return f"{fault.node} {words[fault.kind]}"
