//! The end-to-end harness.
pub mod xds;
