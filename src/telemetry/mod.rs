//! What the program tells about itself: metrics, logs, health.
//!
//! Values only; the paths under `/actuator` that show them are in `api/actuator`. Each server owns its [`Metrics`] and
//! [`Health`]; nothing is global but the log, of which a process has one.

pub mod engine;
pub mod health;
pub mod logs;
pub mod metrics;

mod kept;
mod process;
mod render;
mod timings;

pub use engine::EngineCollector;
pub use health::{ComponentHealth, Health, Status};
pub use kept::KeptHistogram;
pub use logs::{LogGuard, LogOptions};
pub use metrics::{Metrics, Op, Outcome};
pub use render::{Measurements, Reading, Refusal};
pub use timings::Timings;
