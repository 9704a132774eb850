//! Remembers which kind of backend answered last, native or legacy, for all workers of a gateway.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{backend_api::Health, id::InstanceId};

/// The kind of the backend that answered last, shared by all workers of a gateway.
#[derive(Clone, Debug, Default)]
pub struct KnownBackend(Arc<RwLock<Option<BackendKind>>>);

/// A kind of backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackendKind {
    /// A cc-executor, with its answer to `GET /health`.
    Native(Arc<Health>),
    /// The legacy image.
    Legacy,
}

impl BackendKind {
    /// The allowed values of `executor`.
    pub fn executors(&self) -> Vec<String> {
        match self {
            BackendKind::Native(health) => health.executors.clone(),
            BackendKind::Legacy => vec!["default".to_owned()],
        }
    }

    /// Whether it has this capability.
    pub fn has(&self, capability: &str) -> bool {
        match self {
            BackendKind::Native(health) => health.capabilities.iter().any(|name| name == capability),
            BackendKind::Legacy => false,
        }
    }

    /// The instance of the backend, if it states one.
    pub fn instance(&self) -> Option<InstanceId> {
        match self {
            BackendKind::Native(health) => health.instance,
            BackendKind::Legacy => None,
        }
    }
}

impl KnownBackend {
    /// The kind that answered last, or `None` before the first answer.
    pub fn get(&self) -> Option<BackendKind> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records which kind of backend answered. Returns false, and records nothing, for an answer in the legacy image's
    /// form after a native backend was seen: a proxy, or another program on its port, may give one.
    pub(super) fn learn(&self, kind: &BackendKind) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let fits = !matches!((&*known, kind), (Some(BackendKind::Native(_)), BackendKind::Legacy));
        if fits {
            *known = Some(kind.clone());
        }
        fits
    }
}
