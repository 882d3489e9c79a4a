"""Every message type, by name."""

from gpuloop.schemas.messages.actions import Approval, Command, Outcome, Proposal
from gpuloop.schemas.messages.base import Message, StrictMessage, dataschema
from gpuloop.schemas.messages.control import Control
from gpuloop.schemas.messages.decisions import Decision
from gpuloop.schemas.messages.insight import Anomaly, Cause, FeatureVector, Forecast, Risk
from gpuloop.schemas.messages.internal import Cut, Frame, Partial, Snapshot
from gpuloop.schemas.messages.learning import PolicyVersion, Reward
from gpuloop.schemas.messages.record import AuditCheckpoint, AuditRecord, DeadLetter
from gpuloop.schemas.messages.state import JobState, NodeState, PoolState
from gpuloop.schemas.messages.telemetry import (
    ClockAnchor,
    Fault,
    GpuSample,
    JobEvent,
    Offer,
    ResourceSample,
    ServiceSample,
    TenantEvent,
)

__all__ = [
    "Anomaly",
    "Approval",
    "AuditCheckpoint",
    "AuditRecord",
    "Cause",
    "ClockAnchor",
    "Command",
    "Control",
    "Cut",
    "DeadLetter",
    "Decision",
    "Fault",
    "FeatureVector",
    "Forecast",
    "Frame",
    "GpuSample",
    "JobEvent",
    "JobState",
    "Message",
    "NodeState",
    "Offer",
    "Outcome",
    "Partial",
    "PolicyVersion",
    "PoolState",
    "Proposal",
    "ResourceSample",
    "Reward",
    "Risk",
    "ServiceSample",
    "Snapshot",
    "StrictMessage",
    "TenantEvent",
    "dataschema",
]
