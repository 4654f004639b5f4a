//! Changes made elsewhere, brought to the kernel.

mod apply;
pub(in crate::fs) mod helper_calls;
pub(in crate::fs) mod in_flight;
pub(in crate::fs) mod propagator;
mod queue;
pub(in crate::fs) mod repoint;
pub(in crate::fs) mod revocation;
