//! The HTTP facade.
