//! The phases of one pod's start, with who is responsible for each, as a picture.

use serde::Serialize;

/// Who is responsible for a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whose {
    /// Our programs.
    Ours,
    /// Envoy in the pod.
    Envoy,
    /// API server, scheduler, kubelet and container runtime.
    Kubernetes,
    /// Consul's servers and agents, and other pods' Envoys.
    Mesh,
}

/// A phase.
#[derive(Clone, Debug, Serialize)]
pub struct Span {
    /// Who is responsible.
    pub whose: Whose,
    /// Name of the phase.
    pub what: &'static str,
    /// Begin, in milliseconds since the pod was sent to the API server.
    pub begin: f64,
    /// End, likewise.
    pub end: f64,
}

/// The phases of one pod, in order.
#[derive(Clone, Debug, Serialize)]
pub struct Timeline {
    /// Name of the picture.
    pub title: String,
    /// Phases in the order in which they were added.
    pub spans: Vec<Span>,
}

// === impl Timeline ===

impl Timeline {
    /// A timeline without phases.
    pub fn new(title: String) -> Self {
        Self { title, spans: Vec::new() }
    }

    /// Adds a phase. If the times are from two clocks and the end is before the begin, its
    /// length is 0.
    pub fn span(&mut self, whose: Whose, what: &'static str, begin: f64, end: f64) {
        self.spans.push(Span { whose, what, begin, end: end.max(begin) });
    }

    /// When the last phase ended.
    pub fn end(&self) -> f64 {
        self.spans.iter().map(|span| span.end).fold(0.0, f64::max)
    }
}

// === impl Whose ===

impl Whose {
    /// All values, for a legend.
    pub const ALL: [Self; 4] = [Self::Ours, Self::Envoy, Self::Kubernetes, Self::Mesh];

    /// Name for the legend.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Envoy => "Envoy",
            Self::Kubernetes => "Kubernetes",
            Self::Mesh => "Consul, other Envoys",
        }
    }
}
