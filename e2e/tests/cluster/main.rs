//! What only a real Kubernetes can show: `scripts/cluster run`.

mod document;
