//! `operate`: an operator's words to a running search.

use std::{io::Write as _, time::Duration};

use evolver_proto::v1::{self, operate_request};
use serde_json::json;
use tonic::{Code, Request, Status};

use crate::{
    cli::{self, Action},
    fail::refuse,
};

/// Longest that a coordinator may take.
const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn operate(options: &cli::Operate) -> anyhow::Result<()> {
    let target = options.access.target(&options.connect);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut last = Status::unavailable("no address was given");
        for index in 0..target.addresses.len() {
            let mut client = target.client(index).map_err(refuse)?;
            match ask(&mut client, &options.action).await {
                Ok(said) => {
                    writeln!(std::io::stdout(), "{said}")?;
                    return Ok(());
                }
                Err(status) => last = status,
            }
        }
        let sentence = format!("{}: {}", options.connect, last.message());
        match last.code() {
            Code::NotFound | Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => Err(refuse(sentence)),
            _ => Err(anyhow::anyhow!(sentence)),
        }
    })
}

async fn ask(client: &mut evolver_worker::connect::Client, action: &Action) -> Result<String, Status> {
    let action = match action {
        Action::Pause => operate_request::Action::Pause(v1::Pause {}),
        Action::Resume => operate_request::Action::Resume(v1::Resume {}),
        Action::Readmit { worker } => operate_request::Action::Readmit(v1::Readmit { worker: worker.clone() }),
        Action::Distrust { worker } => operate_request::Action::Distrust(v1::Distrust { worker: worker.clone() }),
        Action::Status => return status(client).await,
    };
    let mut request = Request::new(v1::OperateRequest { action: Some(action) });
    request.set_timeout(TIMEOUT);
    Ok(client.operate(request).await?.into_inner().done)
}

async fn status(client: &mut evolver_worker::connect::Client) -> Result<String, Status> {
    let mut stream = client.watch(v1::WatchRequest {}).await?.into_inner();
    let status = stream.message().await?.unwrap_or_default();
    let worker = |worker: &v1::WorkerStatus| {
        json!({
            "worker": worker.worker, "host": worker.host, "spec": worker.spec, "items_done": worker.items_done,
            "items_total": worker.items_total, "results": worker.results, "failures": worker.failures,
            "checked": worker.checked, "agreed": worker.agreed, "withheld": worker.withheld,
        })
    };
    let best = status
        .best
        .as_ref()
        .map(|best| json!({ "id": best.id, "dev": best.dev, "dev_low": best.dev_low, "dev_high": best.dev_high }));
    let status = json!({
        "epoch": status.epoch, "phase": status.phase, "generation": status.generation, "issued": status.issued,
        "committed": status.committed, "accepted": status.accepted, "failed": status.failed,
        "offspring_limit": status.offspring_limit, "best": best, "finished": status.finished,
        "stopped_by": status.stopped_by, "items_scored": status.items_scored, "stuck": status.stuck,
        "checks_open": status.checks_open, "retracted": status.retracted,
        "workers": status.workers.iter().map(worker).collect::<Vec<_>>(),
    });
    Ok(format!("{status:#}"))
}
