//! `noop`: no process at all.

use super::Plan;

pub(super) fn plan() -> Plan {
    Plan::Nothing
}
