//! The number of slots follows the node's configuration file while the node runs (ADM-6): an administrator who changes
//! `slots` there restarts nothing. A file with any mistake changes nothing.

use super::{
    admission::{AdmissionConfig, Cap},
    gatekeeper::{Gatekeeper, SetCap},
};
use crate::{
    config::{Mistakes, Stamp},
    supervise::ChildAddr,
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::JoinHandle;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Reads `slots` and `allow_above_300` of a whole configuration.
pub type ReadSlots = fn(&Path) -> Result<(u16, bool), Mistakes>;

/// The cap in force: also that of a gatekeeper that is built again.
#[derive(Clone)]
pub struct LiveCap(Arc<Mutex<Cap>>);

/// Ends with whoever holds it.
pub struct Following(Option<JoinHandle<()>>);

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl LiveCap {
    /// As the node starts with it.
    pub fn new(cap: Cap) -> LiveCap {
        LiveCap(Arc::new(Mutex::new(cap)))
    }

    /// This configuration with the cap in force.
    pub fn of(&self, config: &AdmissionConfig) -> AdmissionConfig {
        config.clone().with_cap(*self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another cap; whether it is one.
    fn set(&self, cap: Cap) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *held, cap) != cap
    }

    /// Follows a file from here on; without one the cap stays as it is. Call it on an arbiter.
    pub fn follow(&self, file: Option<PathBuf>, read: ReadSlots, gatekeeper: ChildAddr<Gatekeeper>) -> Following {
        let cap = self.clone();
        Following(file.map(|file| actix_rt::spawn(cap.look_for_ever(file, read, gatekeeper))))
    }

    async fn look_for_ever(self, file: PathBuf, read: ReadSlots, gatekeeper: ChildAddr<Gatekeeper>) {
        // The first look reads it in any case: it may have changed since the node read it.
        let mut seen = None;
        loop {
            let (path, last) = (file.clone(), seen.clone());
            let look = move || {
                let now = Some(Stamp::of(&path));
                (now != last).then(|| (now, read(&path)))
            };
            if let Ok(Some((now, slots))) = tokio::task::spawn_blocking(look).await {
                seen = now;
                match slots.map(|(slots, above)| Cap::new(i64::from(slots), above)) {
                    Ok(Ok(cap)) if self.set(cap) => {
                        tracing::info!(slots = cap.get(), file = %file.display(), "another number of slots");
                        if let Some(gatekeeper) = gatekeeper.get() {
                            // One that is just being built again begins with it.
                            let _ = gatekeeper.send(SetCap(cap)).await;
                        }
                    }
                    Ok(Ok(_)) => {}
                    Ok(Err(refusal)) => {
                        tracing::warn!(%refusal, file = %file.display(), "the number of slots stays as it is");
                    }
                    Err(mistakes) => {
                        tracing::warn!(%mistakes, file = %file.display(), "the number of slots stays as it is");
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
