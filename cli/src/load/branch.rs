//! What a process of a load test runs: agents, and with them maybe the whole relay that they dial, so that hundreds of
//! branches need no more than hundreds of processes. Between the two in one process there is a real link all the same.

use super::{
    host::{self, Config, Host},
    process,
};
use branchline_node::{
    node::{Ambient, EndWatch, NodeEnd, StartFault, Started, exit_code},
    process::RunningNode,
};
use branchline_relay::{Config as RelayConfig, Relay, RunningRelay};
use futures_util::future::{Either, LocalBoxFuture, select};
use std::{path::Path, time::Duration};
use tokio::sync::watch;

/// How often the agents' bundle is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Running agents, and maybe their relay.
pub(super) struct Branch {
    relay: Option<RunningRelay>,
    host: Host,
    end: EndWatch,
}

impl Branch {
    /// Starts the relay, if one is told; then, once their bundle is there, the agents.
    pub(super) async fn start(config: Config, shim: Vec<String>) -> Result<Branch, StartFault> {
        let Some(file) = config.relay.clone() else {
            let host = host::start(config, shim).await?;
            let end = host.end();
            return Ok(Branch { relay: None, host, end });
        };
        process::leave_the_processor();
        host::allow_files_for(config.agents.len());
        let of_relay = RelayConfig::read(&file)
            .map_err(|m| StartFault::new(exit_code::CONFIGURATION, "bad_configuration", m.to_string()))?;
        let relay = Relay::start(of_relay, Ambient::system()).await?;
        let agents = async {
            until_there(&config.bundle).await;
            host::start(config, shim).await
        };
        let started = tokio::select! {
            started = agents => started,
            ended = first_end(relay.end()) => Err(early(&ended)),
        };
        match started {
            Ok(host) => {
                let (tell, end) = watch::channel(None);
                let (of_relay, of_agents) = (relay.end(), host.end());
                actix_rt::spawn(async move {
                    let both = select(Box::pin(first_end(of_relay)), Box::pin(first_end(of_agents)));
                    let (Either::Left((ended, _)) | Either::Right((ended, _))) = both.await;
                    tell.send_replace(Some(ended));
                });
                Ok(Branch { relay: Some(relay), host, end })
            }
            Err(fault) => {
                relay.stop().await;
                Err(fault)
            }
        }
    }
}

/// Waits until whoever leads the test has written the file; it is written whole.
async fn until_there(file: &Path) {
    while !file.exists() {
        tokio::time::sleep(LOOK).await;
    }
}

/// How a node ended by itself. One that is stopped never does.
async fn first_end(mut end: EndWatch) -> NodeEnd {
    match end.wait_for(Option::is_some).await.map(|end| end.clone()) {
        Ok(Some(end)) => end,
        _ => std::future::pending().await,
    }
}

fn early(ended: &NodeEnd) -> StartFault {
    StartFault::new(
        ended.exit_code,
        "relay_ended",
        format!("the relay ended before its agents ran: {}", ended.first_fault),
    )
}

impl RunningNode for Branch {
    fn started(&self) -> &Started {
        self.relay.as_ref().map_or(self.host.started(), RunningRelay::started)
    }

    fn end(&self) -> EndWatch {
        self.end.clone()
    }

    fn stop(self) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            self.host.stop().await;
            if let Some(relay) = self.relay {
                relay.stop().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_rt::test]
    async fn a_bundle_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bundle");
        let waiting = actix_rt::spawn({
            let file = file.clone();
            async move { until_there(&file).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        std::fs::write(&file, "").unwrap();
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it is seen").unwrap();
    }

    #[actix_rt::test]
    async fn an_end_is_told_with_its_code() {
        let (tell, end) = watch::channel(None);
        tell.send_replace(Some(NodeEnd { exit_code: 70, first_fault: "disk".into() }));
        let fault = early(&first_end(end).await);
        assert_eq!((fault.exit_code, fault.code.as_str()), (70, "relay_ended"));
        assert!(fault.message.ends_with("disk"), "{}", fault.message);
    }
}
