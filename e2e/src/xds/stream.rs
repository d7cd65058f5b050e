//! One gRPC stream: an Envoy on one side, a follower of its proxy on the other.

use std::pin::Pin;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span, field, info, info_span, warn};

use super::agent::{Agent, Error};
use super::delta::{Session, Verdict};
use super::resources::{Kind, resources};
use super::snapshot::Follower;

/// The aggregated discovery service, for all proxies of one agent.
pub struct Ads {
    /// The agent.
    pub agent: Agent,
    /// Ends all streams.
    pub shutdown: CancellationToken,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only delta ADS is served: set api_type to DELTA_GRPC"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let token = match request.metadata().get("x-consul-token") {
            Some(token) => token.to_str().map_err(|_| Error::Token)?,
            None => "",
        };
        let agent = self.agent.with_token(token)?;
        let peer = request.remote_addr().map(|it| it.to_string()).unwrap_or_default();
        let span = info_span!("stream", peer, proxy = field::Empty);
        let shutdown = self.shutdown.clone();
        // Room for one response a type and for the end: sending never waits.
        let (responses, stream) = mpsc::channel(Kind::ALL.len() + 1);
        let talk = async move {
            let result = tokio::select! {
                result = talk(agent, request.into_inner(), &responses) => result,
                () = responses.closed() => Ok(()),
                () = shutdown.cancelled() => Err(Status::unavailable("the server ends")),
            };
            match &result {
                Ok(()) => info!("ends"),
                Err(status) => info!(code = ?status.code(), reason = status.message(), "ends"),
            }
            if let Err(status) = result {
                // Nobody may be there any more to be told.
                let _ = responses.send(Err(status)).await;
            }
        };
        tokio::spawn(talk.instrument(span));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Talks to one Envoy until it ends the stream, or its proxy can't be followed.
async fn talk(
    agent: Agent,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    responses: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
) -> Result<(), Status> {
    // Only the first request has to name the node, whose id is the proxy's.
    let Some(first) = requests.message().await? else { return Ok(()) };
    let Some(node) = first.node.as_ref().filter(|node| !node.id.is_empty()) else {
        return Err(Status::invalid_argument("the first request has no node id"));
    };
    Span::current().record("proxy", &node.id);
    info!("begins");
    let mut follower = Follower::new(agent, node.id.clone());
    let mut session = Session::default();
    note(session.request(&first));
    loop {
        while let Some(response) = session.respond() {
            log(&response);
            if responses.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            request = requests.message() => match request? {
                Some(request) => note(session.request(&request)),
                None => return Ok(()),
            },
            snapshot = follower.next() => session.set(resources(&snapshot?)),
        }
    }
}

fn note(verdict: Verdict) {
    match verdict {
        Verdict::Nack(kind, detail) => warn!(?kind, detail, "refused by Envoy"),
        Verdict::Unknown(r#type) => warn!(r#type, "asked for what isn't served"),
        Verdict::Ack(_) | Verdict::None => (),
    }
}

fn log(response: &DeltaDiscoveryResponse) {
    let changed: Vec<_> = response.resources.iter().map(|it| &*it.name).collect();
    let r#type = response.type_url.rsplit('.').next();
    info!(r#type, ?changed, removed = ?response.removed_resources, "sends");
}

/// What Envoy is told; it tries again in any case.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NoProxy { .. } => Self::not_found(message),
            Error::Forbidden { .. } => Self::permission_denied(message),
            Error::Token => Self::unauthenticated(message),
            _ => Self::unavailable(message),
        }
    }
}
