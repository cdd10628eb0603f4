//! torc.
