"""The alarm on a served policy's certificate."""

from typing import TYPE_CHECKING

from pointsman.errors import InputError
from pointsman.frontier.certify import Certificate
from pointsman.pool.online.alarm import DriftAlarm

if TYPE_CHECKING:
    from pointsman.pool.policy import PoolPolicy


def alarm_of(policy: "PoolPolicy") -> DriftAlarm | None:
    """An alarm that watches what the policy promises; None where it promises nothing.

    It needs the reference's quality on the calibration part, which `expectations` puts into a
    policy.
    """
    known = policy.expected.get("models", {}).get(policy.reference, {})
    if not policy.certificate.get("certified") or "quality" not in known:
        return None
    try:
        certificate = Certificate.from_dict(policy.certificate)
    except InputError:
        return None
    return DriftAlarm(certificate, float(known["quality"]), reference=policy.reference)
